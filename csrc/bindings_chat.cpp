#include "bindings.hpp"

namespace omr {

void bind_chat(pybind11::module_&) {}

}  // namespace omr
