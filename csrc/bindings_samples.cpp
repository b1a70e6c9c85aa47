// Binds what it takes to check a row and to lay out its sample: plain JPEGs, texts, tar headers.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "bindings.hpp"
#include "jpeg_segments.hpp"
#include "tar_header.hpp"
#include "texts.hpp"

namespace py = pybind11;

namespace {

constexpr int kMaxDepth = 16;  // a list that holds itself ends here

py::object read_plain_jpeg(const py::bytes& data) {
    const std::string_view view(data);
    const std::span<const std::uint8_t> bytes(
        reinterpret_cast<const std::uint8_t*>(view.data()), view.size());
    std::optional<omr::PlainJpeg> found;
    {
        const py::gil_scoped_release release;
        found = omr::plain_jpeg(bytes);
    }
    if (!found) {
        return py::none();
    }
    return py::make_tuple(found->width, found->height, found->components, found->progressive);
}

// The text's UTF-8, which Python keeps with it; nothing if it holds half a surrogate pair.
std::optional<std::string_view> utf8_of(PyObject* text) {
    Py_ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text, &size);
    if (data == nullptr) {
        PyErr_Clear();
        return std::nullopt;
    }
    return std::string_view(data, static_cast<std::size_t>(size));
}

bool text_is_printable(const py::str& text) {
    const auto utf8 = utf8_of(text.ptr());
    return utf8 && omr::is_printable(*utf8);
}

bool append_json(std::string& out, PyObject* value, int depth);

bool append_text(std::string& out, PyObject* value) {
    const auto utf8 = utf8_of(value);
    if (utf8) {
        omr::append_json_string(out, *utf8);
    }
    return utf8.has_value();
}

bool append_items(std::string& out, PyObject* value, int depth) {
    out += '[';
    const bool is_list = PyList_CheckExact(value) != 0;
    const Py_ssize_t size = is_list ? PyList_GET_SIZE(value) : PyTuple_GET_SIZE(value);
    for (Py_ssize_t i = 0; i < size; ++i) {
        if (i > 0) {
            out += ',';
        }
        PyObject* item = is_list ? PyList_GET_ITEM(value, i) : PyTuple_GET_ITEM(value, i);
        if (!append_json(out, item, depth)) {
            return false;
        }
    }
    out += ']';
    return true;
}

bool append_fields(std::string& out, PyObject* value, int depth) {
    out += '{';
    PyObject* name = nullptr;
    PyObject* item = nullptr;
    Py_ssize_t place = 0;
    for (bool first = true; PyDict_Next(value, &place, &name, &item) != 0; first = false) {
        if (!first) {
            out += ',';
        }
        if (!PyUnicode_CheckExact(name) || !append_text(out, name)) {
            return false;
        }
        out += ':';
        if (!append_json(out, item, depth)) {
            return false;
        }
    }
    out += '}';
    return true;
}

// False for anything but text, lists, tuples and dicts; no Python code runs in between.
bool append_json(std::string& out, PyObject* value, int depth) {
    if (PyUnicode_CheckExact(value)) {
        return append_text(out, value);
    }
    if (depth == 0) {
        return false;
    }
    if (PyDict_CheckExact(value)) {
        return append_fields(out, value, depth - 1);
    }
    return (PyList_CheckExact(value) || PyTuple_CheckExact(value)) &&
           append_items(out, value, depth - 1);
}

py::object json_of_texts(const py::object& value) {
    std::string out;
    if (!append_json(out, value.ptr(), kMaxDepth)) {
        return py::none();
    }
    return py::bytes(out);
}

py::bytes make_tar_header(const py::str& name, std::int64_t size) {
    const auto utf8 = utf8_of(name.ptr());
    const auto header = utf8 && size >= 0
                            ? omr::tar_header(*utf8, static_cast<std::uint64_t>(size))
                            : std::nullopt;
    if (!header) {
        const std::string shown = py::repr(name).cast<std::string>();
        throw py::value_error(shown + " of " + std::to_string(size) +
                              " bytes does not fit a ustar header");
    }
    return {header->data(), header->size()};
}

}  // namespace

namespace omr {

void bind_samples(py::module_& m) {
    m.def("plain_jpeg", &read_plain_jpeg, py::arg("data"),
          "(width, height, components, is progressive) of a JPEG without metadata, or None.");
    m.def("is_printable", &text_is_printable, py::arg("text"),
          "False if a text holds control characters or half a surrogate pair.");
    m.def("json_of_texts", &json_of_texts, py::arg("value"),
          "Dicts, lists and tuples of texts as compact JSON, or None if anything else is there.");
    m.def("tar_header", &make_tar_header, py::arg("name"), py::arg("size"),
          "The ustar header of a regular file. Raises ValueError for what does not fit it.");
}

}  // namespace omr
