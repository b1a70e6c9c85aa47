#include "tokenizer/decode.hpp"

#include <algorithm>
#include <string_view>
#include <utility>

namespace omr {

Decoder::Decoder(std::shared_ptr<const Vocabulary> vocabulary, std::vector<ExtraToken> extra)
    : vocabulary_(std::move(vocabulary)), extra_(std::move(extra)) {
    std::sort(extra_.begin(), extra_.end(),
              [](const ExtraToken& a, const ExtraToken& b) { return a.id < b.id; });
}

const ExtraToken* Decoder::extra(std::int64_t id) const {
    const auto found = std::lower_bound(
        extra_.begin(), extra_.end(), id,
        [](const ExtraToken& token, std::int64_t wanted) { return token.id < wanted; });
    return found != extra_.end() && found->id == id ? &*found : nullptr;
}

bool Decoder::knows(std::int64_t id) const {
    if (id < 0 || id > 0xFFFF'FFFF) return false;
    if (extra(id) != nullptr) return true;
    return static_cast<std::size_t>(id) < vocabulary_->size() &&
           !vocabulary_->bytes_of(static_cast<std::uint32_t>(id)).empty();
}

void Decoder::decode(std::span<const std::int64_t> ids, bool skip_special,
                     std::string& out) const {
    for (const std::int64_t id : ids) {
        if (!knows(id)) throw UnknownId(id);
        if (const ExtraToken* const token = extra(id)) {
            if (!(skip_special && token->special)) out += token->bytes;
        } else {
            out += vocabulary_->bytes_of(static_cast<std::uint32_t>(id));
        }
    }
}

}  // namespace omr
