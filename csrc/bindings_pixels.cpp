#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>

#include "bindings.hpp"
#include "pixels/patches.hpp"

namespace py = pybind11;

namespace omr {
namespace {

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

PixelInstructions instructions(const std::string& name) {
    const PixelInstructions best = best_pixel_instructions();
    PixelInstructions wanted = best;
    if (name == "scalar") wanted = PixelInstructions::scalar;
    else if (name == "avx2") wanted = PixelInstructions::avx2;
    else if (name == "avx512") wanted = PixelInstructions::avx512;
    else if (name != "best") throw py::value_error("no such instructions: " + name);
    if (wanted > best) throw py::value_error("this processor lacks " + name);
    return wanted;
}

Filter filter_of(const std::string& name) {
    if (name == "bicubic") return Filter::bicubic;
    if (name == "bilinear") return Filter::bilinear;
    if (name == "lanczos") return Filter::lanczos;
    throw py::value_error("no such filter: " + name);
}

ConstPixels pixels_of(const Bytes& pixels) {
    if (pixels.ndim() != 3 || pixels.shape(2) != 3 || pixels.size() == 0) {
        throw py::value_error("pixels must be (H, W, 3) uint8, not empty");
    }
    const auto height = static_cast<std::size_t>(pixels.shape(0));
    const auto width = static_cast<std::size_t>(pixels.shape(1));
    if (height > 65'535 * 16 || width > 65'535 * 16) throw py::value_error("too large a side");
    return {pixels.data(), height, width, width * 3};
}

Bytes resize(const Bytes& pixels, std::size_t height, std::size_t width, const std::string& filter,
             bool vertical_first, const std::string& with) {
    const ConstPixels in = pixels_of(pixels);
    if (height == 0 || width == 0) throw py::value_error("no size to resize to");
    const Filter by = filter_of(filter);
    const PixelInstructions chosen = instructions(with);
    Bytes out({height, width, std::size_t{3}});
    std::uint8_t* to = out.mutable_data();
    const py::gil_scoped_release release;
    Resize(in, height, width, by, vertical_first, chosen).strip(0, height, to);
    return out;
}

template <typename Value>
void patches(const ConstPixels& in, const PatchTarget& target, const py::array& table,
             py::array& out, PixelInstructions with) {
    const auto* values = static_cast<const Value*>(table.data());
    const std::array<std::span<const Value, 256>, 3> tables{
        std::span<const Value, 256>(values, 256), std::span<const Value, 256>(values + 256, 256),
        std::span<const Value, 256>(values + 512, 256)};
    auto* to = static_cast<Value*>(out.mutable_data());
    const py::gil_scoped_release release;
    to_patches(in, target, tables, to, with);
}

void to_patches_into(const Bytes& pixels, std::size_t height, std::size_t width,
                     const py::array& table, py::array& out, std::size_t patch_size,
                     std::size_t merge_size, std::size_t frames, bool channels_last,
                     const std::string& filter, bool vertical_first, const std::string& with) {
    const ConstPixels in = pixels_of(pixels);
    if (patch_size == 0 || merge_size == 0 || frames == 0 || height == 0 || width == 0 ||
        height % (patch_size * merge_size) != 0 || width % (patch_size * merge_size) != 0) {
        throw py::value_error("height and width must be multiples of patch_size * merge_size");
    }
    const py::ssize_t size = out.itemsize();
    const bool contiguous = (table.flags() & out.flags() & py::array::c_style) != 0;
    if (!contiguous || table.itemsize() != size || (size != 2 && size != 4) ||
        table.size() != 3 * 256) {
        throw py::value_error("table must be (3, 256) and out contiguous, both of 2 or 4 bytes");
    }
    if (static_cast<std::size_t>(out.size()) != height * width * 3 * frames) {
        throw py::value_error("out must hold height * width * 3 * frames values");
    }
    const PatchTarget target{height, width, filter_of(filter), vertical_first,
                             {patch_size, merge_size, frames, channels_last}};
    const PixelInstructions chosen = instructions(with);
    if (size == 4) patches<std::uint32_t>(in, target, table, out, chosen);
    else patches<std::uint16_t>(in, target, table, out, chosen);
}

}  // namespace

void bind_pixels(py::module_& m) {
    m.def("resize", &resize, py::arg("pixels").noconvert(), py::arg("height"), py::arg("width"),
          py::kw_only(), py::arg("filter") = "bicubic", py::arg("vertical_first") = false,
          py::arg("instructions") = "best",
          "(H, W, 3) uint8 to (height, width, 3), as Pillow's Image.resize.");
    m.def("to_patches", &to_patches_into, py::arg("pixels").noconvert(), py::arg("height"),
          py::arg("width"), py::arg("table").noconvert(), py::arg("out").noconvert(),
          py::kw_only(), py::arg("patch_size"), py::arg("merge_size"), py::arg("frames"),
          py::arg("channels_last") = false, py::arg("filter") = "bicubic",
          py::arg("vertical_first") = false, py::arg("instructions") = "best",
          "Resize (H, W, 3) uint8 and write patches of the table's values to `out`.");
}

}  // namespace omr
