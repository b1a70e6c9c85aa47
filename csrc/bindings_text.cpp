// Normalisation and pieces, each on its own: what the tests hold against Hugging Face.
#include <pybind11/numpy.h>

#include <array>
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

constexpr std::array<const char*, 3> names_of_instructions{"scalar", "avx2", "avx512"};

Instructions instructions_of(const std::string& name) {
    if (name == "best") return best_instructions();
    for (std::size_t i = 0; i < names_of_instructions.size(); ++i) {
        if (name == names_of_instructions[i]) return static_cast<Instructions>(i);
    }
    throw py::value_error("instructions is '" + name +
                          "'; take one of: best, scalar, avx2, avx512");
}

py::array_t<std::uint32_t> split_pieces(const std::string& pattern, const py::bytes& text,
                                        const std::string& instructions, std::size_t capacity) {
    const Pattern which = pattern_of(pattern);
    const Instructions how = instructions_of(instructions);
    const std::string_view view = checked(text);
    if (view.size() > max_text) {
        throw py::value_error("text has " + std::to_string(view.size()) + " bytes, at most " +
                              std::to_string(max_text) + " can be split; cut it");
    }
    if (capacity < 64) {
        throw py::value_error("capacity is " + std::to_string(capacity) + "; take 64 or more");
    }
    std::vector<std::uint32_t> ends;
    {
        const py::gil_scoped_release release;
        std::vector<std::uint32_t> some(capacity);
        std::size_t start = 0;
        for (;;) {
            const std::size_t count = split(which, view, start, some.data(), capacity, how);
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

py::array_t<std::uint8_t> char_classes(const py::array_t<std::uint32_t, py::array::c_style>& code_points) {
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
    m.def(
        "best_instructions",
        [] { return names_of_instructions[static_cast<std::size_t>(best_instructions())]; },
        "The best of scalar, avx2 and avx512 that this processor has.");
    m.def("normalize_nfc", &normalize_nfc, py::arg("text"), "The NFC of UTF-8.");
    m.def(
        "may_need_nfc", [](const py::bytes& text) { return may_need_nfc(checked(text)); },
        py::arg("text"), "False proves that UTF-8 is in NFC.");
    m.def("char_class", &char_classes, py::arg("code_points"),
          "Classes of code points: 0 other, 1 letter, 2 number, 3 space, 4 line break.");
}

}  // namespace omr
