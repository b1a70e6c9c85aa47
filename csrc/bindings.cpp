// Binds the C++ core to Python, and nothing else, as do the bindings_*.cpp beside it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "bindings.hpp"
#include "jpeg_segments.hpp"
#include "tar_scanner.hpp"

namespace py = pybind11;

namespace {

// Arguments of the Python exception: (reason: str, offset: int).
void raise_tar_error(const py::object& kind, const omr::TarFormatError& error) {
    const py::tuple arguments = py::make_tuple(error.what(), error.offset());
    PyErr_SetObject(kind.ptr(), arguments.ptr());
}

py::tuple scan_tar(const py::buffer& buffer, std::size_t max_name, std::size_t max_extended) {
    // buffer_info keeps the exporter (an mmap) from being closed while the GIL is released.
    const py::buffer_info info = buffer.request();
    if (info.ndim != 1 || info.itemsize != 1 || (info.size > 1 && info.strides[0] != 1)) {
        throw py::value_error("scan_tar takes a contiguous buffer of bytes");
    }
    const std::span<const std::uint8_t> tar(static_cast<const std::uint8_t*>(info.ptr),
                                            static_cast<std::size_t>(info.size));
    std::vector<omr::TarMember> members;
    {
        const py::gil_scoped_release release;
        members = omr::scan_tar(tar, {max_name, max_extended});
    }
    py::list names(members.size());
    py::array_t<std::int64_t> table({static_cast<py::ssize_t>(members.size()), py::ssize_t{3}});
    auto rows = table.mutable_unchecked<2>();
    for (std::size_t i = 0; i < members.size(); ++i) {
        const auto row = static_cast<py::ssize_t>(i);
        names[i] = py::bytes(members[i].name);
        rows(row, 0) = static_cast<std::int64_t>(members[i].header_offset);
        rows(row, 1) = static_cast<std::int64_t>(members[i].data_offset);
        rows(row, 2) = static_cast<std::int64_t>(members[i].size);
    }
    return py::make_tuple(names, table);
}

py::list jpeg_segments(const py::bytes& data, bool tables) {
    const std::string_view view(data);
    const std::span<const std::uint8_t> bytes(
        reinterpret_cast<const std::uint8_t*>(view.data()), view.size());
    std::vector<omr::JpegSegment> segments;
    {
        const py::gil_scoped_release release;
        segments = omr::jpeg_segments(bytes, tables);
    }
    py::list found(segments.size());
    for (std::size_t i = 0; i < segments.size(); ++i) {
        found[i] = py::make_tuple(segments[i].start, segments[i].stop, segments[i].marker);
    }
    return found;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "The C++ core of omr_io.";

    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> tar_format_error;
    tar_format_error.call_once_and_store_result(
        [&]() { return py::exception<omr::TarFormatError>(m, "TarFormatError", PyExc_ValueError); });
    py::register_local_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const omr::TarFormatError& error) {
            raise_tar_error(tar_format_error.get_stored(), error);
        }
    });

    py::register_exception<omr::JpegFormatError>(m, "JpegFormatError", PyExc_ValueError);
    m.def("jpeg_segments", &jpeg_segments, py::arg("data"), py::kw_only(),
          py::arg("tables") = false,
          "List the segments of a JPEG after SOI: (start, stop, marker). Raises JpegFormatError.");

    m.def("scan_tar", &scan_tar, py::arg("tar"), py::kw_only(),
          py::arg("max_name") = omr::TarLimits{}.max_name,
          py::arg("max_extended") = omr::TarLimits{}.max_extended,
          "List the regular files of a tar: (names, int64 table of header offset, data offset, "
          "size). Raises TarFormatError(reason, offset).");

    omr::bind_text(m);
    omr::bind_vocabulary(m);
    omr::bind_encoder(m);
    omr::bind_chat(m);
    omr::bind_samples(m);
    omr::bind_pixels(m);
    omr::bind_pack(m);
    omr::bind_packing(m);
    omr::bind_axis_weights(m);
    omr::bind_convert(m);
}
