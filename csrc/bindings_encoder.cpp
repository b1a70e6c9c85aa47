#include "bindings.hpp"

namespace omr {

void bind_encoder(pybind11::module_&) {}

}  // namespace omr
