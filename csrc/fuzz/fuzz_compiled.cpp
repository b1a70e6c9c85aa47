// The compiled form of a vocabulary, damaged: refused, or it behaves. Never a read out of bounds.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "fuzz.hpp"
#include "tokenizer/vocabulary_block.hpp"

namespace omr::fuzz {

namespace {

void forge(std::string& bytes, std::uint64_t BlockHeader::*field, std::uint64_t value) {
    BlockHeader header;
    std::memcpy(&header, bytes.data(), sizeof header);
    header.*field = value;
    std::memcpy(bytes.data(), &header, sizeof header);
}

// The tables of a true block, each as a range of its bytes: small ones are hit as often as large.
std::vector<std::pair<std::size_t, std::size_t>> ranges(std::span<const std::uint8_t> block) {
    std::vector<std::pair<std::size_t, std::size_t>> found{{0, sizeof(BlockHeader)}};
    const VocabularyTables tables = block_tables(block.data());
    const auto add = [&](const auto& span) {
        const auto* first = reinterpret_cast<const std::uint8_t*>(span.data());
        if (!span.empty()) found.emplace_back(first - block.data(), span.size_bytes());
    };
    add(tables.starts);
    add(tables.text);
    add(tables.tokens);
    add(tables.long_tokens);
    add(tables.merges.byte_id);
    add(tables.merges.byte_pair);
    add(tables.merges.pairs);
    add(tables.merges.merged);
    add(tables.merges.filter.words);
    add(tables.merges.characters);
    return found;
}

// Input: edits of 5 bytes each (table, place in 3, value), the first byte says which vocabulary,
// the second how many edits, how much is cut off or added, and whether the sums are made to fit the damage: a forged
// file gets past the checksum, and must not get further than the checks behind it.
std::string damaged(std::span<const std::uint8_t> input) {
    const auto& made = vocabularies()[input[0] % vocabularies().size()];
    const std::span<const std::uint8_t> whole = made.vocabulary->compiled();
    const auto tables = ranges(whole);
    const auto size = static_cast<std::uint32_t>(made.vocabulary->size());
    const std::uint32_t words[] = {0,           1,           size,       size - 1,  size | 1U << 31,
                                   0xFFFF'FFFF, 0x7FFF'FFFF, 0x8000'0000, 0x7FFF'FFFE, size + 1};
    std::string bytes(reinterpret_cast<const char*>(whole.data()), whole.size());
    const std::size_t edits = 1 + input[1] / 16 % 4;  // few: one check must not hide another
    for (std::size_t n = 0, at = 2; n < edits && at + 5 <= input.size(); ++n, at += 5) {
        const auto [first, length] = tables[input[at] % tables.size()];
        const std::size_t place = (input[at + 1] | static_cast<std::size_t>(input[at + 2]) << 8 |
                                   static_cast<std::size_t>(input[at + 3]) << 16) % length;
        // A byte, or words of those that a check may forget, up to all of the table.
        const std::uint32_t word = words[input[at + 4] % std::size(words)];
        const std::size_t begin = input[at] < 200 ? place / 4 * 4 : 0;
        const std::size_t end = input[at] < 160 ? begin + 4 : input[at] < 180 ? begin + 400 : length;
        if (input[at] < 80) bytes[first + place] = static_cast<char>(input[at + 4]);
        for (std::size_t i = begin; input[at] >= 80 && i + 4 <= std::min(end, length); i += 4) {
            std::memcpy(bytes.data() + first + i, &word, 4);
        }
    }
    if (input[1] % 8 == 1) bytes.resize(input.size() * 97 % (bytes.size() + 1));
    if (input[1] % 8 == 2) bytes.append(input[1], static_cast<char>(input[0]));
    if (input[1] % 8 == 3) bytes.assign(reinterpret_cast<const char*>(input.data()), input.size());
    if (input[1] % 16 < 12 && bytes.size() >= sizeof(BlockHeader)) {
        if (input[1] % 16 < 8) forge(bytes, &BlockHeader::size, bytes.size());
        const Exact copy(bytes);
        forge(bytes, &BlockHeader::checksum,
              block_checksum({reinterpret_cast<const std::uint8_t*>(copy.data()), bytes.size()}));
    }
    return bytes;
}

class File {
public:
    explicit File(const std::string& bytes) : handle_(memfd_create("compiled", 0)) {
        REQUIRE(handle_ >= 0);
        REQUIRE(write(handle_, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
    }
    ~File() { close(handle_); }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    std::string path() const { return "/proc/self/fd/" + std::to_string(handle_); }

private:
    int handle_;
};

}  // namespace

void fuzz_compiled(std::span<const std::uint8_t> input) {
    if (input.size() < 2) return;
    const File file(damaged(input));
    std::shared_ptr<const Vocabulary> vocabulary;
    try {
        vocabulary = Vocabulary::map(file.path());
    } catch (const std::exception&) {
        return;
    }
    const std::size_t size = vocabulary->size();
    for (std::size_t id = 0; id < size && id < 5000; ++id) {
        const std::string token(vocabulary->bytes_of(static_cast<std::uint32_t>(id)));
        REQUIRE(vocabulary->find(token) < static_cast<std::int64_t>(size));
    }
    const Encoder encoder(vocabulary, {Pattern::qwen2, true, {}});
    const std::shared_ptr<Worker> worker = encoder.borrow();
    for (const std::string& seed : seeds()) {
        const std::string text = valid_utf8(
            {reinterpret_cast<const std::uint8_t*>(seed.data()), seed.size()});
        Ids ids;
        encoder.encode(std::string_view(text), *worker, ids);
        REQUIRE(ids.size() <= text.size() * 3);  // NFC makes at most three of one
        for (std::size_t i = 0; i < ids.size(); ++i) {
            REQUIRE(ids.data()[i] >= 0 && static_cast<std::size_t>(ids.data()[i]) < size);
        }
    }
}

}  // namespace omr::fuzz
