// split: the same ends by every set of instructions, in blocks of any size, from any start.
#include <algorithm>

#include "fuzz.hpp"

namespace omr::fuzz {

namespace {

std::vector<std::uint32_t> ends_of(Pattern pattern, std::string_view text, std::size_t block,
                                   Instructions instructions) {
    std::vector<std::uint32_t> ends;
    std::size_t start = 0;
    while (true) {
        const std::unique_ptr<std::uint32_t[]> room(new std::uint32_t[block]);
        const std::size_t count = split(pattern, text, start, room.get(), block, instructions);
        REQUIRE(count <= block);
        ends.insert(ends.end(), room.get(), room.get() + count);
        if (start == text.size() || count == 0) break;
        start = ends.back();
        if (start == text.size()) break;
    }
    return ends;
}

}  // namespace

void fuzz_split(std::span<const std::uint8_t> input) {
    if (input.size() < 2) return;
    const Pattern pattern = input[0] % 2 == 0 ? Pattern::qwen2 : Pattern::llama3;
    const std::size_t block = input[0] % 3 == 0 ? 64 : 64 + input[1];
    const Exact text(valid_utf8(input.subspan(2)));
    const std::string_view view = text.view();

    std::vector<std::uint32_t> want(view.size() + 64);
    want.resize(split_scalar(pattern, view, 0, want.data(), want.size()));
    REQUIRE(view.empty() ? want.empty() : want.back() == view.size());
    std::uint32_t last = 0;
    for (const std::uint32_t end : want) {
        REQUIRE(end > last);
        REQUIRE(end == view.size() || (static_cast<unsigned char>(view[end]) & 0xC0) != 0x80);
        last = end;
    }
    const auto best = static_cast<int>(best_instructions());
    for (int level = 0; level <= best; ++level) {
        const auto instructions = static_cast<Instructions>(level);
        REQUIRE(ends_of(pattern, view, block, instructions) == want);
        REQUIRE(ends_of(pattern, view, view.size() + 64, instructions) == want);
    }
}

}  // namespace omr::fuzz
