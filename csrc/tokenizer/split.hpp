// Text → pieces: what byte-pair encoding works within, equal to the Split of a tokenizer.json.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace omr {

// The regular expressions that are implemented; they differ in how many digits make a piece.
enum class Pattern : std::uint8_t {
    qwen2,   // Qwen2, Qwen2.5, Qwen3: \p{N}
    llama3,  // Llama 3: \p{N}{1,3}
};

// What the processor can do; `best_instructions` is what this one does.
enum class Instructions : std::uint8_t { scalar, avx2, avx512 };
Instructions best_instructions();

inline constexpr std::size_t max_text = 0xFFFF'FF00;  // bytes: ends are 32-bit numbers

// Writes the ends of pieces, as byte offsets from the text's start, in order.
//
// text: valid UTF-8 of at most `max_text` bytes. Nothing beyond its end is read.
// start: where to begin: 0, or the last end that an earlier call wrote.
// ends, capacity: room for what is written; capacity >= 64.
// Returns how many were written; fewer than fit only when the text is at its end.
std::size_t split(Pattern pattern, std::string_view text, std::size_t start, std::uint32_t* ends,
                  std::size_t capacity, Instructions instructions);

// The plain form that the others are held against; `split` with Instructions::scalar calls it.
std::size_t split_scalar(Pattern pattern, std::string_view text, std::size_t start,
                         std::uint32_t* ends, std::size_t capacity);

}  // namespace omr
