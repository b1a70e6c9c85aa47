#include "tokenizer/chat.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

namespace omr {

namespace {

constexpr std::int64_t max_placeholders = std::int64_t{1} << 30;  // of one image

void append(Ids& out, std::span<const std::int32_t> ids) {
    if (ids.empty()) return;
    std::memcpy(out.reserve(ids.size()), ids.data(), ids.size_bytes());
    out.commit(ids.size());
}

void truncate(Ids& ids, std::size_t size) {
    ids.clear();
    ids.commit(size);
}

const std::vector<ChatPart>& parts_of(const ChatRole& role, const ChatTurn& turn) {
    return turn.images.empty() ? role.plain : role.with_images;
}

// Where to part the conversations so that each thread gets about as much text: `threads` of them,
// or fewer where there is not enough to pay for starting one.
std::vector<std::size_t> shares(std::span<const ChatTurn> turns,
                                std::span<const std::size_t> row_ends, std::size_t threads) {
    // A conversation costs about as much as 256 characters beside its text.
    constexpr std::size_t row_cost = 256;
    constexpr std::size_t least_share = std::size_t{256} << 10;
    std::size_t total = row_ends.size() * row_cost;
    for (const ChatTurn& turn : turns) total += turn.text.length;
    threads = std::clamp<std::size_t>(threads, 1, 1 + total / least_share);
    std::vector<std::size_t> bounds{0};
    std::size_t cost = 0;
    std::size_t turn = 0;
    for (std::size_t row = 0; row < row_ends.size() && bounds.size() < threads; ++row) {
        if (cost >= total / threads * bounds.size() && row > bounds.back()) bounds.push_back(row);
        cost += row_cost;
        for (; turn < row_ends[row]; ++turn) cost += turns[turn].text.length;
    }
    bounds.push_back(row_ends.size());
    return bounds;
}

// Calls work(part, first row, last row) for each share on a thread of its own. Rethrows what the
// first of them threw: the shares are in order, so it is the first row that is to blame.
template <typename Work>
void share_out(const std::vector<std::size_t>& bounds, const Work& work) {
    const std::size_t parts = bounds.size() - 1;
    std::vector<std::exception_ptr> errors(parts);
    const auto guarded = [&](std::size_t part) {
        try {
            work(part, bounds[part], bounds[part + 1]);
        } catch (...) {
            errors[part] = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    others.reserve(parts);
    try {
        for (std::size_t part = 1; part < parts; ++part) others.emplace_back(guarded, part);
    } catch (const std::system_error&) {
        // No more threads are to be had: the calling one does what is left.
    }
    const std::size_t started = others.size();
    guarded(0);
    for (std::size_t part = started + 1; part < parts; ++part) guarded(part);
    for (std::thread& other : others) other.join();
    for (const std::exception_ptr& error : errors) {
        if (error) std::rethrow_exception(error);
    }
}

}  // namespace

struct ChatTemplate::Scratch {
    std::shared_ptr<Worker> worker;
    std::string joined;
    Buffer utf8;

    std::string_view join(const ChatPart& part, const TextView& text) {
        joined.assign(part.before);
        joined.append(to_utf8(text, utf8));
        joined.append(part.after);
        return joined;
    }
};

ChatTemplate::ChatTemplate(const Encoder& encoder, std::vector<ChatRole> roles, ImageBlock image)
    : encoder_(encoder), roles_(std::move(roles)), image_(std::move(image)) {
    for (const ChatRole& role : roles_) {
        for (const ChatPart& part : role.plain) {
            if (part.kind == ChatPart::Kind::images) {
                throw std::invalid_argument("a turn without images has a part for images");
            }
        }
    }
}

void ChatTemplate::check(std::span<const ChatTurn> turns,
                         std::span<const std::size_t> row_ends) const {
    std::size_t last = 0;
    for (const std::size_t end : row_ends) {
        if (end < last || end > turns.size()) throw std::invalid_argument("row_ends are no ends");
        last = end;
    }
    if (last != turns.size()) throw std::invalid_argument("row_ends do not end with the turns");
    for (const ChatTurn& turn : turns) {
        if (turn.role >= roles_.size()) throw std::invalid_argument("a turn has no such role");
        if (!turn.images.empty() && roles_[turn.role].with_images.empty()) {
            throw std::invalid_argument("a turn of this role has no images");
        }
        for (const std::int64_t count : turn.images) {
            if (count < 0 || count > max_placeholders) {
                throw std::invalid_argument("an image has no such number of placeholders");
            }
        }
    }
}

// Returns where the turn's trained text begins in `out.ids`, or its end if it has none.
std::size_t ChatTemplate::encode_turn(const ChatTurn& turn, Scratch& scratch,
                                      ChatBatch& out) const {
    std::size_t trained_text = static_cast<std::size_t>(-1);
    for (const ChatPart& part : parts_of(roles_[turn.role], turn)) {
        const std::size_t begin = out.ids.size();
        switch (part.kind) {
            case ChatPart::Kind::ids:
                append(out.ids, part.ids);
                break;
            case ChatPart::Kind::text:
                if (part.trained) trained_text = begin;
                if (part.before.empty() && part.after.empty()) {
                    encoder_.encode(turn.text, *scratch.worker, out.ids);
                } else {
                    encoder_.encode(scratch.join(part, turn.text), *scratch.worker, out.ids);
                }
                break;
            case ChatPart::Kind::images:
                for (const std::int64_t image : turn.images) {
                    append(out.ids, image_.before);
                    const auto count = static_cast<std::size_t>(image);
                    std::fill_n(out.ids.reserve(count), count, image_.pad);
                    out.ids.commit(count);
                    append(out.ids, image_.after);
                }
                break;
        }
        if (part.trained && out.ids.size() > begin) {
            if (!out.trained.empty() && out.trained.back().end == begin) {
                out.trained.back().end = out.ids.size();
            } else {
                out.trained.push_back({begin, out.ids.size()});
            }
        }
    }
    return std::min(trained_text, out.ids.size());
}

void ChatTemplate::encode_rows(std::span<const ChatTurn> turns,
                               std::span<const std::size_t> row_ends, std::size_t first,
                               std::size_t last, ChatLimit limit, ChatBatch& out) const {
    Scratch scratch{encoder_.borrow(), {}, {}};
    out.ends.reserve(last - first);
    out.prompts.reserve(last - first);
    out.cut.reserve(last - first);
    for (std::size_t row = first; row < last; ++row) {
        const std::size_t begin = out.ids.size();
        const std::size_t spans = out.trained.size();
        std::size_t trained_text = begin;
        const std::size_t first_turn = row == 0 ? 0 : row_ends[row - 1];
        for (std::size_t turn = first_turn; turn < row_ends[row]; ++turn) {
            try {
                trained_text = encode_turn(turns[turn], scratch, out);
            } catch (const TextError& error) {
                throw ChatTextError(error.what(), row, turn - first_turn);
            }
        }
        const std::size_t tokens = out.ids.size() - begin;
        std::size_t cut = 0;
        if (limit.max_tokens != 0 && tokens > limit.max_tokens) {
            // At least one token of the trained text must stay: else there is nothing to learn.
            const std::size_t end = begin + limit.max_tokens;
            if (!limit.cut || end <= trained_text) {
                throw ChatLengthError(row, tokens, trained_text - begin);
            }
            truncate(out.ids, end);
            cut = tokens - limit.max_tokens;
            out.trained.back().end = std::min(out.trained.back().end, end);
        }
        out.ends.push_back(static_cast<std::int64_t>(out.ids.size()));
        const bool any = out.trained.size() > spans;
        const std::size_t prompt = (any ? out.trained[spans].begin : out.ids.size()) - begin;
        out.prompts.push_back(static_cast<std::int64_t>(prompt));
        out.cut.push_back(static_cast<std::int64_t>(cut));
    }
}

ChatBatch ChatTemplate::encode(std::span<const ChatTurn> turns,
                               std::span<const std::size_t> row_ends, ChatLimit limit,
                               std::size_t threads) const {
    check(turns, row_ends);
    const std::vector<std::size_t> bounds = shares(turns, row_ends, threads);
    std::vector<ChatBatch> made(bounds.size() - 1);
    share_out(bounds, [&](std::size_t part, std::size_t first, std::size_t last) {
        encode_rows(turns, row_ends, first, last, limit, made[part]);
    });
    ChatBatch& whole = made.front();
    for (std::size_t part = 1; part < made.size(); ++part) {
        const std::size_t shift = whole.ids.size();
        append(whole.ids, {made[part].ids.data(), made[part].ids.size()});
        for (const ChatBatch::Span& span : made[part].trained) {
            whole.trained.push_back({span.begin + shift, span.end + shift});
        }
        for (const std::int64_t end : made[part].ends) {
            whole.ends.push_back(end + static_cast<std::int64_t>(shift));
        }
        whole.prompts.insert(whole.prompts.end(), made[part].prompts.begin(),
                             made[part].prompts.end());
        whole.cut.insert(whole.cut.end(), made[part].cut.begin(), made[part].cut.end());
        made[part] = ChatBatch{};
    }
    return std::move(whole);
}

void ChatTemplate::count_rows(std::span<const ChatTurn> turns,
                              std::span<const std::size_t> row_ends, std::size_t first,
                              std::size_t last, ChatCounts& out) const {
    Scratch scratch{encoder_.borrow(), {}, {}};
    const std::size_t image = image_.before.size() + image_.after.size();
    for (std::size_t row = first; row < last; ++row) {
        std::size_t text = 0;
        std::size_t labels = 0;
        const std::size_t first_turn = row == 0 ? 0 : row_ends[row - 1];
        for (std::size_t place = first_turn; place < row_ends[row]; ++place) {
            const ChatTurn& turn = turns[place];
            for (const ChatPart& part : parts_of(roles_[turn.role], turn)) {
                std::size_t tokens = 0;
                try {
                    if (part.kind == ChatPart::Kind::ids) {
                        tokens = part.ids.size();
                    } else if (part.kind == ChatPart::Kind::images) {
                        tokens = image * turn.images.size();
                    } else if (part.before.empty() && part.after.empty()) {
                        tokens = encoder_.count(turn.text, *scratch.worker);
                    } else {
                        tokens = encoder_.count(scratch.join(part, turn.text), *scratch.worker);
                    }
                } catch (const TextError& error) {
                    throw ChatTextError(error.what(), row, place - first_turn);
                }
                text += tokens;
                if (part.trained) labels += tokens;
            }
        }
        out.text.push_back(static_cast<std::int64_t>(text));
        out.labels.push_back(static_cast<std::int64_t>(labels));
    }
}

ChatCounts ChatTemplate::count(std::span<const ChatTurn> turns,
                               std::span<const std::size_t> row_ends, std::size_t threads) const {
    check(turns, row_ends);
    const std::vector<std::size_t> bounds = shares(turns, row_ends, threads);
    std::vector<ChatCounts> made(bounds.size() - 1);
    share_out(bounds, [&](std::size_t part, std::size_t first, std::size_t last) {
        count_rows(turns, row_ends, first, last, made[part]);
    });
    ChatCounts& whole = made.front();
    for (std::size_t part = 1; part < made.size(); ++part) {
        whole.text.insert(whole.text.end(), made[part].text.begin(), made[part].text.end());
        whole.labels.insert(whole.labels.end(), made[part].labels.begin(),
                            made[part].labels.end());
    }
    return std::move(whole);
}

}  // namespace omr
