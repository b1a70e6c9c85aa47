#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "pixels/patches.hpp"

namespace py = pybind11;

namespace omr {
namespace {

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;
using Pixels = py::array_t<std::uint8_t, 0>;  // of any strides

constexpr std::size_t max_side = std::size_t{1} << 20;
constexpr std::size_t most_values = std::size_t{1} << 60;

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

ConstPixels pixels_of(const py::handle& given) {
    if (!py::isinstance<Pixels>(given)) throw py::value_error("pixels must be a uint8 array");
    const auto pixels = py::reinterpret_borrow<Pixels>(given);
    if (pixels.ndim() != 3 || pixels.shape(2) != 3 || pixels.size() == 0) {
        throw py::value_error("pixels must be (H, W, 3) uint8, not empty");
    }
    const auto height = static_cast<std::size_t>(pixels.shape(0));
    const auto width = static_cast<std::size_t>(pixels.shape(1));
    if (height > max_side || width > max_side) throw py::value_error("too large a side");
    const auto bytes = static_cast<py::ssize_t>(width * 3);
    if (pixels.strides(2) != 1 || (width > 1 && pixels.strides(1) != 3) ||
        (height > 1 && pixels.strides(0) < bytes)) {
        throw py::value_error("the bytes of a row must lie side by side, and rows in order");
    }
    const py::ssize_t stride = height > 1 ? pixels.strides(0) : bytes;
    return {pixels.data(), height, width, static_cast<std::size_t>(stride)};
}

Bytes resize(const py::array& pixels, std::size_t height, std::size_t width,
             const std::string& filter, bool vertical_first, const std::string& with) {
    const ConstPixels in = pixels_of(pixels);
    if (height == 0 || width == 0 || height > max_side || width > max_side) {
        throw py::value_error("no size to resize to");
    }
    const Filter by = filter_of(filter);
    const PixelInstructions chosen = instructions(with);
    Bytes out({height, width, std::size_t{3}});
    std::uint8_t* to = out.mutable_data();
    const py::gil_scoped_release release;
    Resize(in, height, width, by, vertical_first, chosen).strip(0, height, to);
    return out;
}

using Target = std::tuple<std::size_t, std::size_t, std::string, bool>;

// The jobs of a batch, and how many values they make.
std::pair<std::vector<PatchJob>, std::size_t> jobs_of(const py::list& images,
                                                      const std::vector<Target>& targets,
                                                      const PatchLayout& layout) {
    if (images.size() != targets.size()) throw py::value_error("each image must have a target");
    if (std::min({layout.height, layout.width, layout.merge, layout.frames}) == 0 ||
        std::max({layout.height, layout.width, layout.merge, layout.frames}) > max_side) {
        throw py::value_error("a patch has no size, or too large a one");
    }
    std::vector<PatchJob> jobs;
    std::size_t values = 0;
    for (std::size_t i = 0; i < targets.size(); ++i) {
        const auto& [height, width, filter, vertical_first] = targets[i];
        if (height == 0 || width == 0 || height > max_side || width > max_side ||
            height % (layout.height * layout.merge) != 0 ||
            width % (layout.width * layout.merge) != 0) {
            throw py::value_error("height and width must be multiples of patch * merge_size");
        }
        jobs.push_back({pixels_of(images[i]), {height, width, filter_of(filter), vertical_first}});
        const std::size_t pixels = height * width * 3;  // below 2^42
        if (pixels > (most_values - values) / layout.frames) throw py::value_error("too many values");
        values += pixels * layout.frames;
    }
    return {std::move(jobs), values};
}

template <typename Value>
void patches(const std::vector<PatchJob>& jobs, const PatchLayout& layout, const py::array& table,
             py::array& out, PixelInstructions with, std::size_t threads, std::size_t whole_bytes) {
    const ValueTables<Value> tables{
        std::span<const Value, 768>(static_cast<const Value*>(table.data()), 768)};
    auto* to = static_cast<Value*>(out.mutable_data());
    const py::gil_scoped_release release;
    to_patches<Value>(jobs, layout, tables, to, with, threads, whole_bytes);
}

void to_patches_into(const py::list& images, const std::vector<Target>& targets,
                     const py::array& table, py::array& out, std::size_t patch_height,
                     std::size_t patch_width, std::size_t merge_size, std::size_t frames,
                     bool channels_last, std::size_t threads, const std::string& with,
                     std::size_t whole_bytes) {
    const PatchLayout layout{patch_height, patch_width, merge_size, frames, channels_last};
    const auto [jobs, values] = jobs_of(images, targets, layout);
    const py::ssize_t size = out.itemsize();
    const bool contiguous = (table.flags() & out.flags() & py::array::c_style) != 0;
    if (!contiguous || table.itemsize() != size || (size != 2 && size != 4) ||
        table.size() != 3 * 256) {
        throw py::value_error("table must be (3, 256) and out contiguous, both of 2 or 4 bytes");
    }
    if (static_cast<std::size_t>(out.size()) != values) {
        throw py::value_error("out must hold height * width * 3 * frames values of each image");
    }
    if (threads == 0) throw py::value_error("threads must be at least 1");
    const PixelInstructions chosen = instructions(with);
    if (size == 4) patches<std::uint32_t>(jobs, layout, table, out, chosen, threads, whole_bytes);
    else patches<std::uint16_t>(jobs, layout, table, out, chosen, threads, whole_bytes);
}

}  // namespace

void bind_pixels(py::module_& m) {
    m.def("resize", &resize, py::arg("pixels").noconvert(), py::arg("height"), py::arg("width"),
          py::kw_only(), py::arg("filter") = "bicubic", py::arg("vertical_first") = false,
          py::arg("instructions") = "best",
          "(H, W, 3) uint8 to (height, width, 3), as Pillow's Image.resize.");
    m.def("to_patches", &to_patches_into, py::arg("images"), py::arg("targets"),
          py::arg("table").noconvert(), py::arg("out").noconvert(), py::kw_only(),
          py::arg("patch_height"), py::arg("patch_width"), py::arg("merge_size"),
          py::arg("frames"), py::arg("channels_last"), py::arg("threads") = 1,
          py::arg("instructions") = "best", py::arg("whole_bytes") = 0,
          "Resize each (H, W, 3) uint8 and write patches of the table's values to `out`.");
}

}  // namespace omr
