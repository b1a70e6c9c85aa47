// Normalisation and pieces, each on its own: what the tests hold against Hugging Face.
#include <pybind11/numpy.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bindings.hpp"
#include "tokenizer/split.hpp"
#include "tokenizer/unicode.hpp"

namespace py = pybind11;

namespace omr {
namespace {

// The C++ core trusts its input to be UTF-8. UnicodeDecodeError is a ValueError that says where.
std::string_view checked(const py::bytes& text) {
    const std::string_view view(text);
    PyObject* const decoded =
        PyUnicode_DecodeUTF8(view.data(), static_cast<py::ssize_t>(view.size()), "strict");
    if (decoded == nullptr) throw py::error_already_set();
    Py_DECREF(decoded);
    return view;
}

Pattern pattern_of(const std::string& name) {
    if (name == "qwen2") return Pattern::qwen2;
    if (name == "llama3") return Pattern::llama3;
    throw py::value_error("pattern is '" + name + "'; take one of: qwen2, llama3");
}

std::size_t call_split(const std::string& instructions, Pattern pattern, std::string_view text,
                       std::size_t start, std::uint32_t* ends, std::size_t capacity) {
    if (instructions == "scalar") return split_scalar(pattern, text, start, ends, capacity);
    throw py::value_error("instructions is '" + instructions + "'; take one of: scalar");
}

py::array_t<std::uint32_t> split_pieces(const std::string& pattern, const py::bytes& text,
                                        const std::string& instructions, std::size_t capacity) {
    const Pattern which = pattern_of(pattern);
    const std::string_view view = checked(text);
    if (view.size() > max_text) throw py::value_error("text has more bytes than max_text");
    if (capacity < 64) throw py::value_error("capacity is below 64");
    std::vector<std::uint32_t> ends;
    {
        const py::gil_scoped_release release;
        std::vector<std::uint32_t> some(capacity);
        std::size_t start = 0;
        for (;;) {
            const std::size_t count =
                call_split(instructions, which, view, start, some.data(), capacity);
            ends.insert(ends.end(), some.begin(), some.begin() + static_cast<std::ptrdiff_t>(count));
            if (count < capacity) break;
            start = ends.back();
        }
    }
    return py::array_t<std::uint32_t>(static_cast<py::ssize_t>(ends.size()), ends.data());
}

py::bytes normalize_nfc(const py::bytes& text) {
    const std::string_view view = checked(text);
    std::string out;
    {
        const py::gil_scoped_release release;
        to_nfc(view, out);
    }
    return out;
}

py::array_t<std::uint8_t> char_classes(const py::array_t<std::uint32_t>& code_points) {
    if (code_points.ndim() != 1) throw py::value_error("code_points is not one-dimensional");
    const auto in = code_points.unchecked<1>();
    py::array_t<std::uint8_t> classes(in.shape(0));
    auto out = classes.mutable_unchecked<1>();
    for (py::ssize_t i = 0; i < in.shape(0); ++i) {
        if (in(i) >= 0x110000) {
            throw py::value_error("code_points[" + std::to_string(i) + "] is " +
                                  std::to_string(in(i)) + ", beyond U+10FFFF");
        }
        out(i) = static_cast<std::uint8_t>(char_class(in(i)));
    }
    return classes;
}

}  // namespace

void bind_text(py::module_& m) {
    m.def("split_pieces", &split_pieces, py::arg("pattern"), py::arg("text"),
          py::arg("instructions") = "best", py::arg("capacity") = 512,
          "Ends of the pieces of UTF-8, as byte offsets. capacity: how many a call writes.");
    m.def("normalize_nfc", &normalize_nfc, py::arg("text"), "The NFC of UTF-8.");
    m.def(
        "may_need_nfc", [](const py::bytes& text) { return may_need_nfc(checked(text)); },
        py::arg("text"), "False proves that UTF-8 is in NFC.");
    m.def("char_class", &char_classes, py::arg("code_points"),
          "Classes of code points: 0 other, 1 letter, 2 number, 3 space, 4 line break.");
}

}  // namespace omr
