// The forms of `split` that need a processor of their own; called by split.cpp after it has asked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tokenizer/split.hpp"

namespace omr {

#if defined(__x86_64__)
std::size_t split_avx2(Pattern pattern, std::string_view text, std::size_t start,
                       std::uint32_t* ends, std::size_t capacity);
std::size_t split_avx512(Pattern pattern, std::string_view text, std::size_t start,
                         std::uint32_t* ends, std::size_t capacity);
#endif

}  // namespace omr
