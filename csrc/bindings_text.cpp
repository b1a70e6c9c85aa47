#include "bindings.hpp"

namespace omr {

void bind_text(pybind11::module_&) {}

}  // namespace omr
