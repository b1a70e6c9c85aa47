// The span table and what is written from it, on random samples and random tables, under sanitizers:
//   g++ -std=c++20 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover -Icsrc
//       csrc/pack/*.cpp tests/csrc/fuzz_pack.cpp -o fuzz_pack && ./fuzz_pack ROUNDS SEED
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <random>
#include <vector>

#include "pack/pack.hpp"
#include "pack/spans.hpp"

namespace {

std::mt19937_64 random_bits;

std::int64_t below(std::int64_t limit) {
    return static_cast<std::int64_t>(random_bits() % static_cast<std::uint64_t>(limit));
}

void require(bool holds, const char* what) {
    if (!holds) {
        std::cerr << "broken: " << what << '\n';
        std::abort();
    }
}

// Exactly sized on the heap, so that the address sanitizer sees any access past the end.
struct Sample {
    std::vector<std::int32_t> ids;
    std::vector<std::uint8_t> trained;
    std::vector<std::array<std::int64_t, 3>> grids;
};

constexpr std::int32_t kImage = 7;

Sample make_sample() {
    Sample sample;
    for (std::int64_t part = below(5); part > 0; --part) {
        for (std::int64_t n = below(3) == 0 ? below(90) : below(4); n > 0; --n) {
            sample.ids.push_back(static_cast<std::int32_t>(10 + below(90)));
        }
        if (below(2) == 0) {
            const std::array<std::int64_t, 3> grid{1 + below(2), 2 + below(12), 2 + below(12)};
            sample.grids.push_back(grid);
            const std::int64_t count = grid[0] * (grid[1] / 2) * (grid[2] / 2);
            sample.ids.insert(sample.ids.end(), static_cast<std::size_t>(count), kImage);
        }
    }
    for (std::size_t i = 0; i < sample.ids.size(); ++i) {
        const bool same = i > 0 && below(5) != 0;
        sample.trained.push_back(same ? sample.trained[i - 1] : static_cast<std::uint8_t>(below(3)));
    }
    if (below(8) == 0 && !sample.grids.empty()) {  // spoil a grid
        constexpr std::array<std::int64_t, 6> kOdd{0, -1, INT64_MIN, INT64_MAX, 1LL << 32, 3};
        sample.grids[0][static_cast<std::size_t>(below(3))] = kOdd[static_cast<std::size_t>(below(6))];
    }
    if (below(16) == 0 && !sample.ids.empty()) {  // spoil an id
        const auto at = static_cast<std::size_t>(below(static_cast<std::int64_t>(sample.ids.size())));
        sample.ids[at] = below(2) == 0 ? kImage : -1;
    }
    sample.ids.shrink_to_fit();
    sample.trained.shrink_to_fit();
    return sample;
}

template <typename Id>
void write(const std::vector<std::int32_t>& tokens, const std::vector<omr::Span>& spans,
           std::size_t size) {
    constexpr Id kPoison = -77;
    std::vector<Id> ids(7 * size, kPoison);
    std::vector<std::int32_t> segments(size, kPoison);
    std::vector<float> weights(size, kPoison);
    omr::pack_spans<Id>(tokens, spans, size, 3,
                        {ids.data(), ids.data() + size, ids.data() + 2 * size,
                         ids.data() + 6 * size, segments.data(), weights.data()});
    require(std::find(ids.begin(), ids.end(), kPoison) == ids.end(), "an id is not written");
    require(std::find(segments.begin(), segments.end(), kPoison) == segments.end(), "a segment");
    require(std::find(weights.begin(), weights.end(), kPoison) == weights.end(), "a weight");
}

// A table that somebody else made: either refused, or written without leaving any array.
void spoil(std::vector<std::int32_t> tokens, std::vector<omr::Span> spans, std::size_t size) {
    if (spans.empty()) {
        return;
    }
    auto* words = reinterpret_cast<std::int32_t*>(spans.data());
    for (std::int64_t n = 1 + below(2); n > 0; --n) {
        const auto at = below(static_cast<std::int64_t>(spans.size() * omr::kSpanFields));
        constexpr std::array<std::int32_t, 6> kOdd{0, -1, 1, INT32_MIN, INT32_MAX, 13};
        words[at] = kOdd[static_cast<std::size_t>(below(6))];
    }
    if (omr::spans_are_sound(spans, tokens.size(), size)) {
        std::vector<std::int32_t> segments(size);
        std::vector<float> weights(size);
        std::vector<std::int64_t> ids(7 * size);
        omr::pack_spans<std::int64_t>(tokens, spans, size, 3,
                                      {ids.data(), ids.data() + size, ids.data() + 2 * size,
                                       ids.data() + 6 * size, segments.data(), weights.data()});
    }
}

bool run() {
    std::vector<std::unique_ptr<Sample>> owned;
    std::vector<omr::PackSample> samples;
    std::vector<std::size_t> pack_sizes;
    std::vector<std::int32_t> tokens;
    std::size_t longest = 1;
    for (std::int64_t pack = below(4); pack > 0; --pack) {
        std::size_t length = 0;
        pack_sizes.push_back(static_cast<std::size_t>(below(4)));
        for (std::size_t n = pack_sizes.back(); n > 0; --n) {
            owned.push_back(std::make_unique<Sample>(make_sample()));
            const Sample& one = *owned.back();
            samples.push_back({one.ids, one.trained.data(), one.grids, 1065353216});
            tokens.insert(tokens.end(), one.ids.begin(), one.ids.end());
            length += one.ids.size();
        }
        longest = std::max(longest, length);
    }
    tokens.shrink_to_fit();
    const auto seq_len = static_cast<std::int64_t>(longest) + below(3) * below(40) - below(2) * below(2);
    if (seq_len < 1) {
        return false;
    }
    const std::size_t size = pack_sizes.size() * static_cast<std::size_t>(seq_len);
    try {
        const omr::SpanPlan plan = omr::plan_spans(samples, pack_sizes, {seq_len, kImage, 2});
        require(omr::spans_are_sound(plan.spans, tokens.size(), size), "the plan is unsound");
        require(plan.num_tokens == static_cast<std::int64_t>(tokens.size()), "tokens are lost");
        write<std::int32_t>(tokens, plan.spans, size);
        write<std::int64_t>(tokens, plan.spans, size);
        spoil(tokens, plan.spans, size);
        return true;
    } catch (const omr::PackError& error) {
        require(error.sample() < samples.size(), "an error without a sample");
        return false;
    }
}

}  // namespace

int main(int argc, char** argv) {
    const long rounds = argc > 1 ? std::strtol(argv[1], nullptr, 10) : 10'000;
    random_bits.seed(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
    long packed = 0;
    for (long round = 0; round < rounds; ++round) {
        packed += run() ? 1 : 0;
    }
    std::cout << packed << " of " << rounds << " batches could be packed\n";
}
