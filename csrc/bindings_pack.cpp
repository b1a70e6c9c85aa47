// Binds the span table of a batch and what is written from it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "pack/pack.hpp"
#include "pack/spans.hpp"

namespace py = pybind11;

namespace omr {
namespace {

static_assert(sizeof(std::array<std::int64_t, 3>) == 3 * sizeof(std::int64_t));

using Int32s = py::array_t<std::int32_t, py::array::c_style>;

// The sample's array of this name, C-contiguous, of exactly this dtype.
template <typename Value>
py::array array_of(const py::handle& sample, std::size_t number, const char* name, int dimensions,
                   const char* dtype) {
    const py::object value = sample.attr(name);
    if (py::isinstance<py::array>(value)) {
        const auto array = py::reinterpret_borrow<py::array>(value);
        if (array.ndim() == dimensions && array.dtype().equal(py::dtype::of<Value>())) {
            if ((array.flags() & py::array::c_style) != 0) {
                return array;
            }
            return py::array_t<Value, py::array::c_style>::ensure(array);
        }
    }
    const std::string what = std::string(name) + " is no " + std::to_string(dimensions) +
                             "-dimensional " + dtype + " array";
    throw PackError(PackError::Kind::wrong, number, what.c_str());
}

// The samples of all packs: views into arrays that `held` keeps.
struct Given {
    std::vector<py::array> held;
    std::vector<PackSample> samples;
    std::vector<std::size_t> pack_sizes;
    std::size_t num_tokens = 0;

    void add(const py::handle& sample) {
        const std::size_t number = samples.size();
        const py::array ids = array_of<std::int32_t>(sample, number, "input_ids", 1, "int32");
        const py::array trained = array_of<bool>(sample, number, "trained", 1, "bool");
        const py::array grids = array_of<std::int64_t>(sample, number, "image_grid_thw", 2, "int64");
        if (trained.size() != ids.size()) {
            throw PackError(PackError::Kind::wrong, number,
                            "trained has not the length of input_ids");
        }
        if (grids.shape(1) != 3) {
            throw PackError(PackError::Kind::wrong, number, "image_grid_thw has not 3 columns");
        }
        const auto weight = static_cast<float>(sample.attr("loss_weight").cast<double>());
        if (!std::isfinite(weight)) {
            throw PackError(PackError::Kind::wrong, number,
                            "loss_weight is not finite in float32");
        }
        const auto size = static_cast<std::size_t>(ids.size());
        const auto* grid = static_cast<const std::array<std::int64_t, 3>*>(grids.data());
        samples.push_back({{static_cast<const std::int32_t*>(ids.data()), size},
                           static_cast<const std::uint8_t*>(trained.data()),
                           {grid, static_cast<std::size_t>(grids.shape(0))},
                           std::bit_cast<std::int32_t>(weight)});
        held.insert(held.end(), {ids, trained, grids});
        num_tokens += size;
    }
};

template <typename Value>
Int32s to_int32s(const std::vector<Value>& values, std::vector<py::ssize_t> shape) {
    Int32s out(std::move(shape));
    if (!values.empty()) {
        std::memcpy(out.mutable_data(), values.data(), values.size() * sizeof(Value));
    }
    return out;
}

py::tuple span_table(const py::sequence& packs, std::int64_t seq_len, std::int32_t image_token_id,
                     std::int64_t merge_size) {
    const auto num_packs = static_cast<std::int64_t>(packs.size());
    if (seq_len < 1 || merge_size < 1 || (num_packs > 0 && seq_len > kMaxPositions / num_packs)) {
        throw py::value_error("seq_len, merge_size or the number of packs is out of range");
    }
    Given given;
    for (const auto& pack : packs) {
        const std::size_t before = given.samples.size();
        for (const auto& sample : pack) {
            given.add(sample);
        }
        given.pack_sizes.push_back(given.samples.size() - before);
    }
    Int32s tokens(static_cast<py::ssize_t>(given.num_tokens));
    std::int32_t* to = tokens.mutable_data();
    SpanPlan plan;
    {
        const py::gil_scoped_release release;
        plan = plan_spans(given.samples, given.pack_sizes, {seq_len, image_token_id, merge_size});
        for (const PackSample& sample : given.samples) {
            to = std::copy(sample.ids.begin(), sample.ids.end(), to);
        }
    }
    const auto num_spans = static_cast<py::ssize_t>(plan.spans.size());
    const auto num_bounds = static_cast<py::ssize_t>(plan.cu_seqlens.size());
    return py::make_tuple(
        tokens, to_int32s(plan.spans, {num_spans, static_cast<py::ssize_t>(kSpanFields)}),
        to_int32s(plan.cu_seqlens, {num_bounds}), plan.max_seqlen, plan.num_tokens,
        plan.num_label_tokens);
}

template <typename Value>
Value* writable(py::array& array, std::size_t size, const char* name) {
    if (!array.dtype().equal(py::dtype::of<Value>()) || !array.writeable() ||
        (array.flags() & py::array::c_style) == 0 ||
        static_cast<std::size_t>(array.size()) != size) {
        throw py::value_error(std::string(name) + " has another dtype or size");
    }
    return static_cast<Value*>(array.mutable_data());
}

template <typename Id>
void pack_as(const Int32s& tokens, std::span<const Span> spans, std::size_t num_positions,
             std::int32_t pad_id, py::array& ids, py::array& segment_ids,
             py::array& loss_weights) {
    Id* rows = writable<Id>(ids, 7 * num_positions, "ids");
    const PackOutputs<Id> out{rows,
                              rows + num_positions,
                              rows + 2 * num_positions,
                              rows + 6 * num_positions,
                              writable<std::int32_t>(segment_ids, num_positions, "segment_ids"),
                              writable<float>(loss_weights, num_positions, "loss_weights")};
    const std::span<const std::int32_t> from(tokens.data(),
                                             static_cast<std::size_t>(tokens.size()));
    const py::gil_scoped_release release;
    pack_spans(from, spans, num_positions, pad_id, out);
}

void pack_spans_into(const Int32s& tokens, const Int32s& spans, std::int32_t pad_id,
                     py::array& ids, py::array& segment_ids, py::array& loss_weights) {
    if (spans.ndim() != 2 || spans.shape(1) != static_cast<py::ssize_t>(kSpanFields)) {
        throw py::value_error("spans must be (K, " + std::to_string(kSpanFields) + ")");
    }
    const auto num_positions = static_cast<std::size_t>(segment_ids.size());
    // A copy: a few hundred rows, which nobody can change once they are checked.
    std::vector<Span> rows(static_cast<std::size_t>(spans.shape(0)));
    if (!rows.empty()) {
        std::memcpy(rows.data(), spans.data(), rows.size() * sizeof(Span));
    }
    if (num_positions > static_cast<std::size_t>(kMaxPositions) ||
        !spans_are_sound(rows, static_cast<std::size_t>(tokens.size()), num_positions)) {
        throw py::value_error("the spans do not cover the outputs, or leave the tokens");
    }
    if (ids.itemsize() == sizeof(std::int32_t)) {
        pack_as<std::int32_t>(tokens, rows, num_positions, pad_id, ids, segment_ids,
                              loss_weights);
    } else {
        pack_as<std::int64_t>(tokens, rows, num_positions, pad_id, ids, segment_ids,
                              loss_weights);
    }
}

// Arguments of the Python exception: (kind: str, what: str, sample: int).
void raise_pack_error(const py::object& type, const PackError& error) {
    const char* kind = error.kind() == PackError::Kind::wrong      ? "wrong"
                       : error.kind() == PackError::Kind::too_long ? "too-long"
                                                                   : "mismatch";
    const py::tuple arguments = py::make_tuple(kind, error.what(), error.sample());
    PyErr_SetObject(type.ptr(), arguments.ptr());
}

}  // namespace

void bind_pack(py::module_& m) {
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> pack_error;
    pack_error.call_once_and_store_result(
        [&]() { return py::exception<PackError>(m, "PackError", PyExc_ValueError); });
    py::register_local_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const PackError& error) {
            raise_pack_error(pack_error.get_stored(), error);
        }
    });

    m.def("span_table", &span_table, py::arg("packs"), py::kw_only(), py::arg("seq_len"),
          py::arg("image_token_id"), py::arg("merge_size"),
          "(tokens, spans, cu_seqlens, max_seqlen, num_tokens, num_label_tokens) of packs of "
          "samples. Raises PackError(kind, what, sample).");
    m.def("pack_spans", &pack_spans_into, py::arg("tokens").noconvert(),
          py::arg("spans").noconvert(), py::kw_only(), py::arg("pad_id"),
          py::arg("ids").noconvert(), py::arg("segment_ids").noconvert(),
          py::arg("loss_weights").noconvert(),
          "Write the integers of a batch from its span table.");
}

}  // namespace omr
