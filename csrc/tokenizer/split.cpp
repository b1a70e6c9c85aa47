#include "tokenizer/split.hpp"

#include <stdexcept>

#include "tokenizer/split_sets.hpp"

namespace omr {

#if defined(__x86_64__)

namespace {

bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("lzcnt") &&
           __builtin_cpu_supports("popcnt");
}

bool has_avx512() {  // Intel from Ice Lake, AMD from Zen 4
    return has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi2");
}

}  // namespace

Instructions best_instructions() {
    if (has_avx512()) return Instructions::avx512;
    return has_avx2() ? Instructions::avx2 : Instructions::scalar;
}

std::size_t split(Pattern pattern, std::string_view text, std::size_t start, std::uint32_t* ends,
                  std::size_t capacity, Instructions instructions) {
    switch (instructions) {
        case Instructions::avx512:
            if (!has_avx512()) break;
            return split_avx512(pattern, text, start, ends, capacity);
        case Instructions::avx2:
            if (!has_avx2()) break;
            return split_avx2(pattern, text, start, ends, capacity);
        case Instructions::scalar:
            return split_scalar(pattern, text, start, ends, capacity);
    }
    throw std::invalid_argument(
        "split: this processor has not the instructions asked for; ask best_instructions()");
}

#else

Instructions best_instructions() { return Instructions::scalar; }

std::size_t split(Pattern pattern, std::string_view text, std::size_t start, std::uint32_t* ends,
                  std::size_t capacity, Instructions instructions) {
    if (instructions != Instructions::scalar) {
        throw std::invalid_argument(
            "split: this processor has not the instructions asked for; ask best_instructions()");
    }
    return split_scalar(pattern, text, start, ends, capacity);
}

#endif

}  // namespace omr
