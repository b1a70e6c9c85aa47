#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "bindings.hpp"
#include "pixels/axis_weights.hpp"

namespace py = pybind11;

namespace omr {
namespace {

constexpr std::size_t max_side = std::size_t{1} << 20;

Filter named(const std::string& name) {
    if (name == "bicubic") return Filter::bicubic;
    if (name == "bilinear") return Filter::bilinear;
    if (name == "lanczos") return Filter::lanczos;
    throw py::value_error("no such filter: " + name);
}

py::tuple weights_of_axis(std::size_t size_in, std::size_t size_out, const std::string& filter) {
    if (size_in == 0 || size_out == 0 || size_in > max_side || size_out > max_side) {
        throw py::value_error("sizes are 1 to 2**20");
    }
    const Filter by = named(filter);
    AxisWeights made;
    {
        const py::gil_scoped_release release;
        made = axis_weights(size_in, size_out, by);
    }
    py::array_t<std::int32_t> first(static_cast<py::ssize_t>(size_out));
    py::array_t<std::int32_t> weights(
        {static_cast<py::ssize_t>(made.taps), static_cast<py::ssize_t>(size_out)});
    std::memcpy(first.mutable_data(), made.first.data(), size_out * sizeof(std::int32_t));
    std::memcpy(weights.mutable_data(), made.weights.data(),
                made.weights.size() * sizeof(std::int32_t));
    return py::make_tuple(first, weights);
}

}  // namespace

void bind_axis_weights(py::module_& m) {
    m.def("axis_weights", &weights_of_axis, py::arg("size_in"), py::arg("size_out"),
          py::arg("filter"), "(first (size_out,), weights (taps, size_out)), both int32.");
}

}  // namespace omr
