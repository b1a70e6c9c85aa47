// Small vocabularies and pipelines of every kind, and slow oracles for them.
#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include "fuzz.hpp"

namespace omr::fuzz {

namespace {

const char* const sample =
    "The patient's heart isn't enlarged. the the The lesion of 12 mm in the left lobe; 2021, 1234567 "
    "µg/mL naïve café e\u0301 β-catenin α αβγ 上腹部 患者胸部 рентген 가나다 😀😀 👩‍⚕️ \n\n\n\r\n    \t\t    "
    "aaaaaaaaaaaaaaaaaaaaaaaa <think> </think> <|im_end|> ==== ---- ''' 's 't 're \\frac{a}{b} $x$ "
    "The patient's heart isn't enlarged. the the The lesion of 12 mm in the left lobe; \n\n    ";

using Parts = std::vector<std::uint32_t>;

// Ordinary training: the commonest pair of neighbours within pieces becomes a token.
VocabularySource trained(Pattern pattern, std::size_t merges) {
    VocabularySource source;
    for (int byte = 0; byte < 256; ++byte) source.tokens.emplace_back(1, static_cast<char>(byte));
    const std::string_view text(sample);
    std::vector<Parts> pieces;
    std::vector<std::uint32_t> ends(text.size() + 64);
    ends.resize(split_scalar(pattern, text, 0, ends.data(), ends.size()));
    std::size_t begin = 0;
    for (const std::uint32_t end : ends) {
        Parts parts;
        for (; begin < end; ++begin) parts.push_back(static_cast<unsigned char>(text[begin]));
        pieces.push_back(std::move(parts));
    }
    for (std::size_t n = 0; n < merges; ++n) {
        std::map<std::pair<std::uint32_t, std::uint32_t>, int> counts;
        for (const Parts& parts : pieces) {
            for (std::size_t i = 0; i + 1 < parts.size(); ++i) ++counts[{parts[i], parts[i + 1]}];
        }
        if (counts.empty()) break;
        const auto best = std::max_element(counts.begin(), counts.end(), [](auto& a, auto& b) {
            return a.second < b.second;
        })->first;
        const std::string token = source.tokens[best.first] + source.tokens[best.second];
        const auto found = std::find(source.tokens.begin(), source.tokens.end(), token);
        const auto id = static_cast<std::uint32_t>(found - source.tokens.begin());
        if (found == source.tokens.end()) source.tokens.push_back(token);
        source.merges.push_back({best.first, best.second, id});
        for (Parts& parts : pieces) {
            for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
                if (parts[i] != best.first || parts[i + 1] != best.second) continue;
                parts[i] = id;
                parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(i) + 1);
            }
        }
    }
    return source;
}

// The same vocabulary with other ids, some of which have no token.
VocabularySource renumbered(const VocabularySource& from) {
    VocabularySource source;
    source.ignore_merges = from.ignore_merges;
    const std::size_t room = from.tokens.size() + 37;
    const auto moved = [&](std::size_t id) {  // 7919 is prime, and no divisor of `room`
        return static_cast<std::uint32_t>((id * 7919 + 11) % room);
    };
    source.tokens.resize(room);
    for (std::size_t id = 0; id < from.tokens.size(); ++id) source.tokens[moved(id)] = from.tokens[id];
    for (const Merge& merge : from.merges) {
        source.merges.push_back({moved(merge.left), moved(merge.right), moved(merge.merged)});
    }
    return source;
}

// Every way to split a token into two, as Llama 3's tokenizer.json lists its merges.
VocabularySource every_split(VocabularySource source) {
    std::map<std::string, std::uint32_t> ids;
    for (std::size_t id = 0; id < source.tokens.size(); ++id) {
        ids.emplace(source.tokens[id], static_cast<std::uint32_t>(id));
    }
    source.merges.clear();
    for (std::size_t id = 0; id < source.tokens.size(); ++id) {
        const std::string& token = source.tokens[id];
        for (std::size_t at = 1; at < token.size(); ++at) {
            const auto left = ids.find(token.substr(0, at)), right = ids.find(token.substr(at));
            if (left == ids.end() || right == ids.end()) continue;
            source.merges.push_back({left->second, right->second, static_cast<std::uint32_t>(id)});
        }
    }
    return source;
}

// Tokens that no merge makes: only ignore_merges can yield them.
VocabularySource ignoring(VocabularySource source) {
    source.ignore_merges = true;
    for (const char* token : {" unreachable", "zq", "\xE4\xB8\x8A\xE8\x85\xB9", "\r\n\r\n", "777",
                              " a piece that is longer than any", "Pneumonoultramicroscopic"}) {
        const bool is_new = std::find(source.tokens.begin(), source.tokens.end(), token) ==
                            source.tokens.end();
        if (is_new) source.tokens.emplace_back(token);
    }
    return source;
}

Made made(VocabularySource source) {
    auto vocabulary = Vocabulary::build(source);
    return {std::move(source), std::move(vocabulary)};
}

AddedToken added(const char* content, std::size_t id, bool special) {
    return {content, static_cast<std::uint32_t>(id), special, false, false, false, false};
}

Case with(const Made& made, Pattern pattern, bool nfc, std::vector<AddedToken> tokens) {
    bool plain = true;
    for (const AddedToken& token : tokens) {
        plain = plain && !token.normalized && !token.lstrip && !token.rstrip && !token.single_word;
    }
    Pipeline pipeline{pattern, nfc, std::move(tokens)};
    auto encoder = std::make_unique<Encoder>(made.vocabulary, pipeline);
    return {&made, std::move(pipeline), std::move(encoder), plain};
}

}  // namespace

const std::vector<Made>& vocabularies() {
    static const std::vector<Made> all = [] {
        std::vector<Made> list;
        list.push_back(made(trained(Pattern::qwen2, 0)));
        list.push_back(made(trained(Pattern::qwen2, 60)));
        list.push_back(made(trained(Pattern::qwen2, 500)));
        list.push_back(made(renumbered(trained(Pattern::qwen2, 300))));
        list.push_back(made(ignoring(trained(Pattern::llama3, 400))));
        list.push_back(made(every_split(trained(Pattern::llama3, 400))));
        list.push_back(made(renumbered(ignoring(every_split(trained(Pattern::llama3, 200))))));
        return list;
    }();
    return all;
}

const std::vector<Case>& cases() {
    static const std::vector<Case> all = [] {
        std::vector<Case> list;
        for (const Made& one : vocabularies()) {
            const std::size_t next = one.source.tokens.size();
            std::vector<AddedToken> tokens{
                added("<|im_start|>", next, true), added("<|im_end|>", next + 1, true),
                added("<think>", next + 2, false), added("</think>", next + 3, false),
                added("<tool", next + 4, false),   added("<tool_call>", next + 5, false),
            };
            list.push_back(with(one, Pattern::qwen2, true, tokens));
            list.push_back(with(one, Pattern::llama3, false, {}));
            // Flags that no real Qwen or Llama token has, but a tokenizer.json may.
            tokens[2].lstrip = tokens[3].rstrip = tokens[4].single_word = true;
            tokens[5].normalized = true;
            tokens.push_back(added("caf\u00e9", next + 6, false));
            tokens.back().normalized = true;
            list.push_back(with(one, Pattern::llama3, true, tokens));
        }
        return list;
    }();
    return all;
}

void append_utf8(std::string& out, char32_t c) {
    const auto put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
    if (c < 0x80) {
        put(c);
    } else if (c < 0x800) {
        put(0xC0 | c >> 6);
        put(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        put(0xE0 | c >> 12);
        put(0x80 | (c >> 6 & 0x3F));
        put(0x80 | (c & 0x3F));
    } else {
        put(0xF0 | c >> 18);
        put(0x80 | (c >> 12 & 0x3F));
        put(0x80 | (c >> 6 & 0x3F));
        put(0x80 | (c & 0x3F));
    }
}

std::string valid_utf8(std::span<const std::uint8_t> bytes) {
    std::string out;
    for (std::size_t at = 0; at < bytes.size();) {
        const std::uint8_t head = bytes[at];
        const std::size_t more = head < 0xC2 ? 0 : head < 0xE0 ? 1 : head < 0xF0 ? 2 : head < 0xF5 ? 3 : 0;
        char32_t c = more == 0 ? head : head & (0x3FU >> more);
        bool good = head < 0x80 || (more > 0 && at + more < bytes.size());
        for (std::size_t i = 1; good && i <= more; ++i) {
            good = (bytes[at + i] & 0xC0) == 0x80;
            c = c << 6 | (bytes[at + i] & 0x3F);
        }
        const bool surrogate = c >= 0xD800 && c < 0xE000;
        good = good && !surrogate && c < 0x110000 && c >= (more == 3 ? 0x10000 : more == 2 ? 0x800 : 0);
        append_utf8(out, good ? c : head);
        at += good ? 1 + more : 1;
    }
    return out;
}

std::u32string code_points(std::string_view utf8) {
    std::u32string out;
    for (std::size_t at = 0; at < utf8.size();) {
        const auto head = static_cast<std::uint8_t>(utf8[at]);
        const std::size_t more = head < 0x80 ? 0 : head < 0xE0 ? 1 : head < 0xF0 ? 2 : 3;
        char32_t c = more == 0 ? head : head & (0x3FU >> more);
        for (std::size_t i = 1; i <= more; ++i) {
            c = c << 6 | (static_cast<std::uint8_t>(utf8[at + i]) & 0x3FU);
        }
        out.push_back(c);
        at += 1 + more;
    }
    return out;
}

namespace {

struct Lookup {
    std::map<std::string, std::uint32_t, std::less<>> ids;
    std::map<std::pair<std::uint32_t, std::uint32_t>, std::pair<std::size_t, std::uint32_t>> merges;
};

const Lookup& lookup(const VocabularySource& source) {
    static std::map<const VocabularySource*, Lookup> all;
    const auto [place, fresh] = all.try_emplace(&source);
    if (fresh) {
        for (std::size_t id = 0; id < source.tokens.size(); ++id) {
            if (!source.tokens[id].empty()) {
                place->second.ids.emplace(source.tokens[id], static_cast<std::uint32_t>(id));
            }
        }
        for (std::size_t rank = 0; rank < source.merges.size(); ++rank) {
            const Merge& merge = source.merges[rank];
            place->second.merges.emplace(std::pair{merge.left, merge.right},
                                         std::pair{rank, merge.merged});
        }
    }
    return place->second;
}

}  // namespace

std::vector<std::int32_t> merged(const VocabularySource& source, std::string_view piece) {
    const Lookup& table = lookup(source);
    if (source.ignore_merges) {
        if (const auto whole = table.ids.find(piece); whole != table.ids.end()) {
            return {static_cast<std::int32_t>(whole->second)};
        }
    }
    std::vector<std::int32_t> parts;
    for (const char& byte : piece) {
        parts.push_back(static_cast<std::int32_t>(table.ids.find(std::string_view(&byte, 1))->second));
    }
    while (true) {
        std::size_t best = std::numeric_limits<std::size_t>::max(), at = 0;
        std::uint32_t id = 0;
        for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
            const auto found = table.merges.find({static_cast<std::uint32_t>(parts[i]),
                                                  static_cast<std::uint32_t>(parts[i + 1])});
            if (found == table.merges.end() || found->second.first >= best) continue;
            std::tie(best, id) = found->second;
            at = i;
        }
        if (best == std::numeric_limits<std::size_t>::max()) return parts;
        parts[at] = static_cast<std::int32_t>(id);
        parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
}

std::vector<std::int32_t> expected(const Case& one, std::string_view text) {
    std::string normal(text);
    if (one.pipeline.nfc) {
        normal.clear();
        to_nfc(text, normal);
    }
    std::vector<std::uint32_t> ends(normal.size() + 64);
    ends.resize(split_scalar(one.pipeline.pattern, normal, 0, ends.data(), ends.size()));
    std::vector<std::int32_t> ids;
    std::size_t begin = 0;
    for (const std::uint32_t end : ends) {
        const auto part = merged(one.made->source, std::string_view(normal).substr(begin, end - begin));
        ids.insert(ids.end(), part.begin(), part.end());
        begin = end;
    }
    return ids;
}

}  // namespace omr::fuzz
