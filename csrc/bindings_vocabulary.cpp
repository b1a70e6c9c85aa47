#include "bindings.hpp"

namespace omr {

void bind_vocabulary(pybind11::module_&) {}

}  // namespace omr
