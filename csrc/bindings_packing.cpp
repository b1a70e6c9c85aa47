// Binds the binning and the orders of a plan.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <span>

#include "bindings.hpp"
#include "packing/balance.hpp"
#include "packing/binning.hpp"

namespace py = pybind11;

namespace omr {
namespace {

template <typename Value>
using Array = py::array_t<Value, py::array::c_style>;

template <typename Value>
std::span<const Value> view(const Array<Value>& array) {
    if (array.ndim() != 1) {
        throw py::value_error("an array is not one-dimensional");
    }
    return {array.data(), static_cast<std::size_t>(array.size())};
}

template <typename Value>
std::span<Value> writable(Array<Value>& array) {
    return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

template <typename Work>
py::tuple bins_by(const Array<std::int64_t>& lengths, Work work) {
    const auto given = view(lengths);
    Bins bins;
    {
        const py::gil_scoped_release release;
        bins = work(given);
    }
    Array<std::int32_t> bin_of(static_cast<py::ssize_t>(bins.bin_of.size()));
    std::copy(bins.bin_of.begin(), bins.bin_of.end(), bin_of.mutable_data());
    return py::make_tuple(bin_of, bins.count);
}

Array<std::int64_t> shuffled(const Array<std::uint64_t>& words) {
    const auto given = view(words);
    Array<std::int64_t> order(words.size());
    const auto to = writable(order);
    const py::gil_scoped_release release;
    shuffle(given, to);
    return order;
}

py::tuple grouped(const Array<std::int32_t>& group_of, std::size_t num_groups) {
    const auto given = view(group_of);
    Array<std::int64_t> indices(group_of.size());
    Array<std::int64_t> sizes(static_cast<py::ssize_t>(num_groups));
    const auto to_indices = writable(indices);
    const auto to_sizes = writable(sizes);
    {
        const py::gil_scoped_release release;
        group(given, to_indices, to_sizes);
    }
    return py::make_tuple(indices, sizes);
}

Array<std::int32_t> balanced(const Array<std::int64_t>& costs, std::size_t num_ranks) {
    const auto given = view(costs);
    Array<std::int32_t> rank_of(costs.size());
    const auto to = writable(rank_of);
    {
        const py::gil_scoped_release release;
        balance(given, num_ranks, to);
    }
    return rank_of;
}

}  // namespace

void bind_packing(py::module_& m) {
    m.def(
        "best_fit",
        [](const Array<std::int64_t>& lengths, std::int64_t capacity) {
            return bins_by(lengths, [&](auto given) { return best_fit(given, capacity); });
        },
        py::arg("lengths").noconvert(), py::arg("capacity"),
        "(bin of each length (n,) int32, number of bins) by best fit in the given order.");
    m.def(
        "drawn_fill",
        [](const Array<std::int64_t>& lengths, std::int64_t capacity, std::int64_t halves) {
            return bins_by(lengths,
                           [&](auto given) { return drawn_fill(given, capacity, halves); });
        },
        py::arg("lengths").noconvert(), py::arg("capacity"), py::arg("halves"),
        "(bin of each length (n,) int32, number of bins), drawn in order and ended exactly.");
    m.def(
        "fewest_bins",
        [](const Array<std::int64_t>& lengths, std::int64_t capacity) {
            return bins_by(lengths, [&](auto given) { return fewest_bins(given, capacity); });
        },
        py::arg("lengths").noconvert(), py::arg("capacity"),
        "(bin of each length (n,) int32, number of bins) by the best rule.");
    m.def("shuffled", &shuffled, py::arg("words").noconvert(),
          "(n,) int64: the order of range(n) that n random words make.");
    m.def("grouped", &grouped, py::arg("group_of").noconvert(), py::arg("num_groups"),
          "(indices by group (n,) int64, size of each group (num_groups,) int64).");
    m.def("balanced", &balanced, py::arg("costs").noconvert(), py::arg("num_ranks"),
          "(n,) int32: the rank of each cost, equally many each, of nearly equal sums.");
}

}  // namespace omr
