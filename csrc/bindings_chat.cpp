#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "tokenizer/chat.hpp"
#include "tokenizer/codec.hpp"

namespace py = pybind11;

namespace omr {

namespace {

// (kind, trained, ids, before, after), with kind one of "ids", "text", "images".
ChatPart part_of(const py::handle& object) {
    const auto fields = object.cast<py::tuple>();
    if (fields.size() != 5) throw py::value_error("a part has 5 fields");
    ChatPart part;
    const auto kind = fields[0].cast<std::string>();
    if (kind == "text") {
        part.kind = ChatPart::Kind::text;
    } else if (kind == "images") {
        part.kind = ChatPart::Kind::images;
    } else if (kind != "ids") {
        throw py::value_error("no kind of part: " + kind);
    }
    part.trained = fields[1].cast<bool>();
    part.ids = fields[2].cast<std::vector<std::int32_t>>();
    part.before = fields[3].cast<std::string>();
    part.after = fields[4].cast<std::string>();
    return part;
}

std::vector<ChatPart> parts_of(const py::handle& object) {
    std::vector<ChatPart> parts;
    for (const py::handle part : object) parts.push_back(part_of(part));
    return parts;
}

std::unique_ptr<ChatTemplate> make_template(const std::shared_ptr<Codec>& codec,
                                            const py::list& roles,
                                            std::vector<std::int32_t> before, std::int32_t pad,
                                            std::vector<std::int32_t> after) {
    std::vector<ChatRole> made;
    for (const py::handle role : roles) {
        const auto forms = role.cast<py::tuple>();
        if (forms.size() != 2) throw py::value_error("a role has 2 forms");
        made.push_back({parts_of(forms[0]), parts_of(forms[1])});
    }
    return std::make_unique<ChatTemplate>(codec->encoder, std::move(made),
                                          ImageBlock{std::move(before), std::move(after), pad});
}

// Conversations as C++ sees them while the GIL is released. `kept` owns what the views look into:
// tuples and str cannot change, and the list that the caller gave is copied into a tuple.
struct Rows {
    py::tuple kept;
    std::vector<ChatTurn> turns;
    std::vector<std::size_t> ends;
    std::vector<std::int64_t> images;
};

TextView view_of(PyObject* text) {
#if PY_VERSION_HEX < 0x030C0000
    if (PyUnicode_READY(text) != 0) throw py::error_already_set();
#endif
    return {PyUnicode_DATA(text), static_cast<std::size_t>(PyUnicode_GET_LENGTH(text)),
            static_cast<std::uint8_t>(PyUnicode_KIND(text)), PyUnicode_IS_ASCII(text) != 0};
}

// rows: each a tuple of turns (role: int, text: str, images: tuple[int, ...]).
Rows rows_of(const py::handle& given) {
    Rows rows;
    rows.kept = py::reinterpret_steal<py::tuple>(PySequence_Tuple(given.ptr()));
    if (!rows.kept) throw py::error_already_set();
    const auto count = static_cast<std::size_t>(PyTuple_GET_SIZE(rows.kept.ptr()));
    rows.ends.reserve(count);
    rows.turns.reserve(count * 3);
    std::vector<std::size_t> first_images;  // `images` may move while it grows
    for (std::size_t row = 0; row < count; ++row) {
        PyObject* turns = PyTuple_GET_ITEM(rows.kept.ptr(), static_cast<Py_ssize_t>(row));
        if (!PyTuple_CheckExact(turns)) throw py::type_error("a conversation is not a tuple");
        for (Py_ssize_t place = 0; place < PyTuple_GET_SIZE(turns); ++place) {
            PyObject* turn = PyTuple_GET_ITEM(turns, place);
            if (!PyTuple_CheckExact(turn) || PyTuple_GET_SIZE(turn) != 3) {
                throw py::type_error("a turn is not a tuple of role, text and images");
            }
            PyObject* text = PyTuple_GET_ITEM(turn, 1);
            PyObject* images = PyTuple_GET_ITEM(turn, 2);
            if (!PyUnicode_Check(text) || !PyTuple_CheckExact(images)) {
                throw py::type_error("a turn is not a tuple of role, text and images");
            }
            const long role = PyLong_AsLong(PyTuple_GET_ITEM(turn, 0));
            if (role == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
            if (role < 0 || role > 255) throw py::value_error("a turn has no such role");
            first_images.push_back(rows.images.size());
            for (Py_ssize_t image = 0; image < PyTuple_GET_SIZE(images); ++image) {
                const long long pads = PyLong_AsLongLong(PyTuple_GET_ITEM(images, image));
                if (pads == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
                rows.images.push_back(pads);
            }
            rows.turns.push_back({static_cast<std::uint32_t>(role), view_of(text), {}});
        }
        rows.ends.push_back(rows.turns.size());
    }
    first_images.push_back(rows.images.size());
    for (std::size_t turn = 0; turn < rows.turns.size(); ++turn) {
        rows.turns[turn].images = std::span<const std::int64_t>(rows.images)
                                      .subspan(first_images[turn],
                                               first_images[turn + 1] - first_images[turn]);
    }
    return rows;
}

py::array_t<std::int64_t> to_array(const std::vector<std::int64_t>& values, bool after_zero) {
    py::array_t<std::int64_t> made(static_cast<py::ssize_t>(values.size() + after_zero));
    std::int64_t* data = made.mutable_data();
    if (after_zero) *data++ = 0;
    if (!values.empty()) std::memcpy(data, values.data(), values.size() * sizeof(std::int64_t));
    return made;
}

// The ids themselves, not a copy.
py::array_t<std::int32_t> to_array(Ids&& ids) {
    auto kept = std::make_unique<Ids>(std::move(ids));
    const std::int32_t* data = kept->data();
    const auto size = static_cast<py::ssize_t>(kept->size());
    const py::capsule owner(kept.get(), [](void* pointer) { delete static_cast<Ids*>(pointer); });
    static_cast<void>(kept.release());
    if (data == nullptr) return py::array_t<std::int32_t>(0);
    return {{size}, {py::ssize_t{sizeof(std::int32_t)}}, data, owner};
}

using Mask = std::unique_ptr<bool, decltype(&std::free)>;

Mask mask_of(const ChatBatch& batch) {
    const std::size_t size = batch.ids.size();
    Mask mask(static_cast<bool*>(std::calloc(size == 0 ? 1 : size, sizeof(bool))), &std::free);
    if (mask == nullptr) throw std::bad_alloc();
    for (const ChatBatch::Span& span : batch.trained) {
        std::memset(mask.get() + span.begin, 1, span.end - span.begin);
    }
    return mask;
}

py::array_t<bool> to_array(Mask&& mask, std::size_t size) {
    const bool* data = mask.get();
    const py::capsule owner(data, [](void* pointer) { std::free(pointer); });
    static_cast<void>(mask.release());
    return {{static_cast<py::ssize_t>(size)}, {py::ssize_t{1}}, data, owner};
}

py::tuple encode(const ChatTemplate& chat, const py::object& given, std::size_t max_tokens,
                 bool cut, std::size_t threads) {
    const Rows rows = rows_of(given);
    ChatBatch batch;
    Mask mask(nullptr, &std::free);
    {
        const py::gil_scoped_release release;
        batch = chat.encode(rows.turns, rows.ends, {max_tokens, cut}, threads);
        mask = mask_of(batch);
    }
    const std::size_t size = batch.ids.size();
    return py::make_tuple(to_array(std::move(batch.ids)), to_array(std::move(mask), size),
                          to_array(batch.ends, true), to_array(batch.prompts, false),
                          to_array(batch.cut, false));
}

py::tuple count(const ChatTemplate& chat, const py::object& given, std::size_t threads) {
    const Rows rows = rows_of(given);
    ChatCounts counts;
    {
        const py::gil_scoped_release release;
        counts = chat.count(rows.turns, rows.ends, threads);
    }
    return py::make_tuple(to_array(counts.text, false), to_array(counts.labels, false));
}

template <typename... Arguments>
void raise(const py::object& kind, const Arguments&... arguments) {
    PyErr_SetObject(kind.ptr(), py::make_tuple(arguments...).ptr());
}

PYBIND11_CONSTINIT py::gil_safe_call_once_and_store<py::object> text_error;
PYBIND11_CONSTINIT py::gil_safe_call_once_and_store<py::object> length_error;

}  // namespace

void bind_chat(py::module_& m) {
    text_error.call_once_and_store_result([&]() {
        return py::exception<ChatTextError>(m, "ChatTextError", PyExc_ValueError);
    });
    length_error.call_once_and_store_result([&]() {
        return py::exception<ChatLengthError>(m, "ChatLengthError", PyExc_ValueError);
    });
    py::register_local_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const ChatTextError& error) {
            raise(text_error.get_stored(), error.what(), error.row(), error.turn());
        } catch (const ChatLengthError& error) {
            raise(length_error.get_stored(), error.row(), error.tokens(), error.prompt());
        }
    });

    py::class_<ChatTemplate>(m, "ChatTemplate", "A compiled template: csrc/tokenizer/chat.hpp.")
        .def(py::init(&make_template), py::arg("encoder"), py::arg("roles"), py::kw_only(),
             py::arg("before"), py::arg("pad"), py::arg("after"), py::keep_alive<1, 2>())
        .def("encode", &encode, py::arg("rows"), py::kw_only(), py::arg("max_tokens") = 0,
             py::arg("cut") = false, py::arg("threads") = 1,
             "Encode conversations: (ids int32, trained bool, offsets, prompt tokens, cut tokens). "
             "Raises ChatTextError(what, row, turn), ChatLengthError(row, tokens, prompt).")
        .def("count", &count, py::arg("rows"), py::kw_only(), py::arg("threads") = 1,
             "Tokens of conversations but for image placeholders, and trained ones, both int64.");
}

}  // namespace omr
