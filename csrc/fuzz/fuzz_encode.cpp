// Text to ids: what a slow oracle says, counted as many, giving the normal text back; and the same
// from a str of any width.
#include <algorithm>
#include <string>

#include "fuzz.hpp"

namespace omr::fuzz {

namespace {

std::vector<std::int32_t> listed(const Ids& ids) { return {ids.data(), ids.data() + ids.size()}; }

const AddedToken* added_at(const Case& one, std::string_view text) {
    const AddedToken* found = nullptr;
    for (const AddedToken& token : one.pipeline.added) {
        if (token.special || !text.starts_with(token.content)) continue;
        if (found == nullptr || token.content.size() > found->content.size()) found = &token;
    }
    return found;
}

// Ids and bytes that must come of a text: leftmost, longest added tokens, the rest by `expected`.
void slowly(const Case& one, std::string_view text, std::vector<std::int32_t>& ids, std::string& bytes) {
    std::size_t begin = 0;
    const auto flush = [&](std::size_t end) {
        const std::string_view part = text.substr(begin, end - begin);
        const auto found = expected(one, part);
        ids.insert(ids.end(), found.begin(), found.end());
        std::string normal(part);
        if (one.pipeline.nfc) {
            normal.clear();
            to_nfc(part, normal);
        }
        bytes += normal;
    };
    for (std::size_t at = 0; at < text.size();) {
        const AddedToken* token = added_at(one, text.substr(at));
        if (token == nullptr) {
            ++at;
            continue;
        }
        flush(at);
        ids.push_back(static_cast<std::int32_t>(token->id));
        bytes += token->content;
        begin = at += token->content.size();
    }
    flush(text.size());
}

std::string spelt(const Case& one, const std::vector<std::int32_t>& ids) {
    std::string bytes;
    for (const std::int32_t id : ids) {
        const AddedToken* added = nullptr;
        for (const AddedToken& token : one.pipeline.added) {
            if (token.id == static_cast<std::uint32_t>(id)) added = &token;
        }
        REQUIRE(added == nullptr || !added->special);
        bytes += added != nullptr ? std::string_view(added->content)
                                  : one.made->vocabulary->bytes_of(static_cast<std::uint32_t>(id));
    }
    return bytes;
}

template <typename Unit>
void same_as_str(const Case& one, Worker& worker, const std::u32string& text,
                 const std::vector<std::int32_t>& want) {
    const bool ascii = std::all_of(text.begin(), text.end(), [](char32_t c) { return c < 0x80; });
    const std::unique_ptr<Unit[]> units(new Unit[text.size()]);
    std::transform(text.begin(), text.end(), units.get(), [](char32_t c) { return static_cast<Unit>(c); });
    const TextView view{units.get(), text.size(), sizeof(Unit), ascii && sizeof(Unit) == 1};
    Ids ids;
    one.encoder->encode(view, worker, ids);
    REQUIRE(listed(ids) == want);
    REQUIRE(one.encoder->count(view, worker) == want.size());
}

}  // namespace

void fuzz_encode(std::span<const std::uint8_t> input) {
    if (input.size() < 2) return;
    const Case& one = cases()[input[0] % cases().size()];
    const Exact exact(valid_utf8(input.subspan(2)));
    const std::string_view text = exact.view();
    const std::shared_ptr<Worker> worker = one.encoder->borrow();

    Ids ids;
    one.encoder->encode(text, *worker, ids);
    const std::vector<std::int32_t> got = listed(ids);
    REQUIRE(one.encoder->count(text, *worker) == got.size());
    if (one.plain_added) {
        std::vector<std::int32_t> want;
        std::string bytes;
        slowly(one, text, want, bytes);
        REQUIRE(got == want);
        REQUIRE(spelt(one, got) == bytes);
    } else {
        static_cast<void>(spelt(one, got));
    }
    one.encoder->encode(text, *worker, ids);  // appended, and what the cache now has is no other
    REQUIRE(ids.size() == 2 * got.size());
    REQUIRE(std::equal(got.begin(), got.end(), ids.data() + got.size()));

    const std::u32string letters = code_points(text);
    const char32_t widest = letters.empty() ? 0 : *std::max_element(letters.begin(), letters.end());
    if (widest < 0x100) same_as_str<std::uint8_t>(one, *worker, letters, got);
    if (widest < 0x10000) same_as_str<std::uint16_t>(one, *worker, letters, got);
    same_as_str<std::uint32_t>(one, *worker, letters, got);
}

// Any code units: encoded, or refused where a lone surrogate is among them. A str never holds more.
void fuzz_kinds(std::span<const std::uint8_t> input) {
    if (input.size() < 2) return;
    const Case& one = cases()[input[0] % cases().size()];
    const std::uint8_t kind = input[1] % 3 == 0 ? 1 : input[1] % 3 == 1 ? 2 : 4;
    const std::size_t length = (input.size() - 2) / kind;
    const Exact raw({reinterpret_cast<const char*>(input.data()) + 2, length * kind});
    std::u32string letters;
    for (std::size_t i = 0; i < length; ++i) {
        char32_t unit = 0;
        std::memcpy(&unit, raw.data() + i * kind, kind);  // little-endian, as this machine is
        letters.push_back(kind == 4 ? unit % 0x110000 : unit);
        if (kind == 4) std::memcpy(const_cast<char*>(raw.data()) + i * 4, &letters.back(), 4);
    }
    const bool lone = std::any_of(letters.begin(), letters.end(),
                                  [](char32_t c) { return c >= 0xD800 && c < 0xE000; });
    const bool ascii = std::all_of(letters.begin(), letters.end(), [](char32_t c) { return c < 0x80; });
    const TextView view{raw.data(), length, kind, kind == 1 && ascii};
    const std::shared_ptr<Worker> worker = one.encoder->borrow();
    Ids ids;
    bool refused = false;
    try {
        one.encoder->encode(view, *worker, ids);
    } catch (const TextError&) {
        refused = true;
    }
    REQUIRE(refused == lone);
    if (refused) return;
    std::string utf8;
    for (const char32_t c : letters) append_utf8(utf8, c);
    Ids again;
    one.encoder->encode(std::string_view(utf8), *worker, again);
    REQUIRE(listed(again) == listed(ids));
}

}  // namespace omr::fuzz
