#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "tokenizer/batch.hpp"
#include "tokenizer/codec.hpp"
#include "tokenizer/ranks.hpp"

namespace py = pybind11;

namespace {

using Int32Array = py::array_t<std::int32_t>;
using Int64Array = py::array_t<std::int64_t>;

// Below this many code points a text takes less time than giving the GIL up and getting it back
// from a busy thread can.
constexpr std::size_t short_text = 8192;
constexpr std::size_t few_ids = 16384;  // copied rather than handed over

class NotText : public std::exception {
public:
    explicit NotText(std::size_t index) : index_(index) {}
    std::size_t index() const { return index_; }

private:
    std::size_t index_;
};

// A str's own memory: nothing is made or cached in it.
std::optional<omr::TextView> view(PyObject* object) {
    if (!PyUnicode_Check(object)) return std::nullopt;
#if PY_VERSION_HEX < 0x030C0000
    if (PyUnicode_READY(object) != 0) throw py::error_already_set();
#endif
    return omr::TextView{PyUnicode_DATA(object),
                         static_cast<std::size_t>(PyUnicode_GET_LENGTH(object)),
                         static_cast<std::uint8_t>(PyUnicode_KIND(object)),
                         PyUnicode_IS_ASCII(object) != 0};
}

// `texts` is a tuple, so that no other thread can take a text out while it is read.
std::vector<omr::TextView> views(const py::tuple& texts) {
    std::vector<omr::TextView> made;
    made.reserve(texts.size());
    for (std::size_t i = 0; i < texts.size(); ++i) {
        const auto one = view(PyTuple_GET_ITEM(texts.ptr(), static_cast<py::ssize_t>(i)));
        if (!one) throw NotText(i);
        made.push_back(*one);
    }
    return made;
}

Int32Array as_array(omr::Ids&& ids) {
    if (ids.size() < few_ids) {
        Int32Array array(static_cast<py::ssize_t>(ids.size()));
        if (ids.size() > 0) {
            std::memcpy(array.mutable_data(), ids.data(), ids.size() * sizeof(std::int32_t));
        }
        return array;
    }
    auto held = std::make_unique<omr::Ids>(std::move(ids));
    const auto size = static_cast<py::ssize_t>(held->size());
    const std::int32_t* const data = held->data();
    const py::capsule owner(held.get(), [](void* p) { delete static_cast<omr::Ids*>(p); });
    static_cast<void>(held.release());
    return Int32Array(size, data, owner);
}

// Python's signal handlers run between runs of texts; true if one raised.
bool interrupted() {
    const py::gil_scoped_acquire hold;
    return PyErr_CheckSignals() != 0;
}

template <typename Work>
auto without_gil(Work work) {
    try {
        const py::gil_scoped_release release;
        return work();
    } catch (const omr::Interrupted&) {
    }
    throw py::error_already_set();
}

Int32Array encode_text(const omr::Codec& codec, const py::object& text) {
    const auto one = view(text.ptr());
    if (!one) throw NotText(0);
    const std::shared_ptr<omr::Worker> worker = codec.encoder.borrow();
    omr::Ids ids;
    try {
        if (one->length < short_text) {
            codec.encoder.encode(*one, *worker, ids);
        } else {
            const py::gil_scoped_release release;
            codec.encoder.encode(*one, *worker, ids);
        }
    } catch (const omr::TextError& error) {
        throw omr::BatchError(0, error);
    }
    return as_array(std::move(ids));
}

// (ids or None, offsets, how many ids): None if `out` is too small.
py::tuple encode_texts(const omr::Codec& codec, const py::tuple& texts,
                       const std::optional<Int32Array>& out, std::size_t threads) {
    const std::vector<omr::TextView> all = views(texts);
    Int64Array offsets(static_cast<py::ssize_t>(all.size()) + 1);
    std::int32_t nothing = 0;  // an empty array may have no memory to point at, and yet is room
    std::span<std::int32_t> room;
    if (out) {
        const auto size = static_cast<std::size_t>(out->size());
        auto* const data = static_cast<std::int32_t*>(out->request(true).ptr);
        room = {size == 0 ? &nothing : data, size};
    }
    std::int64_t* const into = offsets.mutable_data();
    omr::BatchIds ids = without_gil(
        [&] { return omr::encode_batch(codec.encoder, all, {threads, interrupted}, room, into); });
    py::object made = py::none();
    if (!out) {
        made = as_array(std::move(ids.own));
    } else if (ids.size <= room.size()) {
        made = (*out)[py::slice(0, static_cast<py::ssize_t>(ids.size), 1)];
    }
    return py::make_tuple(made, offsets, ids.size);
}

Int64Array count_texts(const omr::Codec& codec, const py::tuple& texts, std::size_t threads) {
    const std::vector<omr::TextView> all = views(texts);
    Int64Array counts(static_cast<py::ssize_t>(all.size()));
    std::int64_t* const into = counts.mutable_data();
    without_gil([&] { omr::count_batch(codec.encoder, all, {threads, interrupted}, into); });
    return counts;
}

py::str decode_ids(const omr::Codec& codec,
               const py::array_t<std::int64_t, py::array::c_style>& ids, bool skip_special) {
    std::string bytes;
    codec.decoder.decode({ids.data(), static_cast<std::size_t>(ids.size())}, skip_special, bytes);
    // Both Rust and Python put one U+FFFD for each maximal part of a broken sequence.
    PyObject* const text = PyUnicode_DecodeUTF8(bytes.data(),
                                                static_cast<py::ssize_t>(bytes.size()), "replace");
    if (text == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::str>(text);
}

omr::Pattern pattern_of(const std::string& name) {
    if (name == "qwen2") return omr::Pattern::qwen2;
    if (name == "llama3") return omr::Pattern::llama3;
    throw py::value_error("no such pattern: " + name);
}

using AddedTuple = std::tuple<std::string, std::uint32_t, bool, bool, bool, bool, bool>;
using ExtraTuple = std::tuple<std::uint32_t, py::bytes, bool>;

std::shared_ptr<omr::Codec> make_codec(std::shared_ptr<const omr::Vocabulary> vocabulary,
                                  const std::string& pattern, bool nfc,
                                  const std::vector<AddedTuple>& added,
                                  const std::vector<ExtraTuple>& extra, bool refuse_special) {
    omr::Pipeline pipeline{pattern_of(pattern), nfc, {},
                           refuse_special ? omr::SpecialText::error : omr::SpecialText::text};
    for (const auto& [content, id, special, normalized, lstrip, rstrip, single_word] : added) {
        pipeline.added.push_back({content, id, special, normalized, lstrip, rstrip, single_word});
    }
    std::vector<omr::ExtraToken> tokens;
    for (const auto& [id, bytes, special] : extra) {
        tokens.push_back({id, std::string(bytes), special});
    }
    // `new`, since an Encoder cannot be moved.
    return std::shared_ptr<omr::Codec>(new omr::Codec{{vocabulary, std::move(pipeline)},
                                                      {vocabulary, std::move(tokens)}});
}

const char* reason(omr::TextError::Kind kind) {
    switch (kind) {
        case omr::TextError::Kind::surrogate: return "surrogate";
        case omr::TextError::Kind::too_long: return "too-long";
        case omr::TextError::Kind::control_text: return "control-text";
        case omr::TextError::Kind::control_id: return "control-id";
    }
    return "";
}

py::list last_pairs(const py::list& tokens) {
    std::vector<std::string_view> views;
    views.reserve(tokens.size());
    for (const py::handle token : tokens) {
        if (!PyBytes_Check(token.ptr())) throw py::type_error("tokens are bytes");
        views.emplace_back(PyBytes_AS_STRING(token.ptr()),
                           static_cast<std::size_t>(PyBytes_GET_SIZE(token.ptr())));
    }
    const auto pairs = omr::last_pairs(views);
    py::list made(pairs.size());
    for (std::size_t i = 0; i < pairs.size(); ++i) {
        if (pairs[i]) {
            made[i] = py::make_tuple(pairs[i]->first, pairs[i]->second);
        } else {
            made[i] = py::none();
        }
    }
    return made;
}

}  // namespace

namespace omr {

void bind_encoder(py::module_& m) {
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> text_error;
    text_error.call_once_and_store_result(
        [&]() { return py::exception<BatchError>(m, "TextError", PyExc_ValueError); });
    py::register_local_exception_translator([](std::exception_ptr pointer) {
        const auto raise = [](const char* why, std::size_t index, std::size_t at, std::size_t value) {
            const py::tuple arguments = py::make_tuple(why, index, at, value);
            PyErr_SetObject(text_error.get_stored().ptr(), arguments.ptr());
        };
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const BatchError& error) {
            raise(reason(error.cause().kind()), error.index(), error.cause().position(),
                  error.cause().value());
        } catch (const NotText& error) {
            raise("type", error.index(), 0, 0);
        } catch (const UnknownId& error) {
            PyErr_SetObject(PyExc_KeyError, py::int_(error.id()).ptr());
        }
    });

    py::class_<omr::Codec, std::shared_ptr<omr::Codec>>(m, "Encoder",
                      "Texts to ids and back. Raises TextError(reason, text's index, character's "
                      "position, value).")
        .def(py::init(&make_codec), py::arg("vocabulary"), py::kw_only(), py::arg("pattern"),
             py::arg("nfc"), py::arg("added"), py::arg("extra"), py::arg("refuse_special"))
        .def("encode", &encode_text, py::arg("text"))
        .def("encode_batch", &encode_texts, py::arg("texts"), py::arg("out").none(true),
             py::arg("threads"))
        .def("count_batch", &count_texts, py::arg("texts"), py::arg("threads"))
        .def("decode", &decode_ids, py::arg("ids"), py::arg("skip_special"))
        .def("knows", [](const Codec& codec, std::int64_t id) {
            return codec.decoder.knows(id);
        });
    m.def("last_pairs", &last_pairs, py::arg("tokens"),
          "For each token, by rank, the ids of its merge, or None; see tokenizer/ranks.hpp.");
}

}  // namespace omr
