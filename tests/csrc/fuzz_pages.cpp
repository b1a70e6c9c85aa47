// Column chunks and footers of Parquet under a fuzzer or a sanitizer.
// With clang: -fsanitize=fuzzer,address,undefined.
// With -DSTANDALONE it mutates its input files itself: fuzz_pages ROUNDS FILE...
//
// An input's first 8 bytes say how its rest is read: whether pages are compressed, the definition
// level, the number of rows (two bytes), and how many rows and bytes make a batch.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <random>
#include <span>
#include <vector>

#include "parquet_crc32.hpp"
#include "parquet_footer.hpp"
#include "parquet_headers.hpp"
#include "parquet_pages.hpp"

namespace {

class MemorySource final : public omr::ByteSource {
public:
    explicit MemorySource(std::span<const std::uint8_t> data) : data_(data) {}

    std::size_t read(std::uint64_t offset, std::span<std::uint8_t> out) noexcept override {
        const std::size_t begin =
            static_cast<std::size_t>(std::min<std::uint64_t>(offset, data_.size()));
        const std::size_t size = std::min(out.size(), data_.size() - begin);
        if (size != 0) std::memcpy(out.data(), data_.data() + begin, size);
        return size;
    }

private:
    std::span<const std::uint8_t> data_;
};

// A digest of values, reading every byte of each, so that a sanitizer sees where they lie.
std::uint64_t digest_of(const omr::ChunkColumn& column, std::uint64_t digest) {
    const auto levels = column.levels();
    const auto values = column.values();
    if (levels.size() != values.size()) std::abort();
    for (std::size_t row = 0; row < values.size(); ++row) {
        digest = digest * 31 + levels[row];
        if (values[row].data == nullptr) continue;
        digest = digest * 31 + values[row].size;
        digest = digest * 31 + omr::crc32({values[row].data, values[row].size});
    }
    return digest;
}

struct Outcome {
    std::uint64_t rows = 0;
    std::uint64_t digest = 0;
    bool whole = false;
};

Outcome read_all(omr::ByteSource& source, const omr::ColumnChunk& chunk, std::size_t max_rows,
                 std::size_t max_bytes) {
    // The chunk twice, so that one column follows the other.
    const omr::ColumnChunk chunks[] = {chunk, chunk};
    omr::RowGroup group(source, chunks, chunk.num_rows);
    Outcome outcome;
    for (;;) {
        const auto rows = group.next(max_rows, max_bytes);
        outcome.whole = rows && *rows == 0;
        if (!rows || *rows == 0) break;
        outcome.rows += *rows;
        outcome.digest = digest_of(group.column(0), outcome.digest);
        if (digest_of(group.column(1), 0) != digest_of(group.column(0), 0)) std::abort();
    }
    if (outcome.rows > chunk.num_rows || (outcome.whole && outcome.rows != chunk.num_rows)) {
        std::abort();
    }
    return outcome;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    constexpr std::size_t kHead = 8;
    if (size < kHead) return 0;
    const std::span<const std::uint8_t> rest(data + kHead, size - kHead);
    (void)omr::page_header(rest);
    if (const auto footer = omr::parquet_footer(rest, 1U << 20U)) {
        for (const omr::ParquetRowGroup& group : footer->row_groups) {
            if (group.chunks.size() != footer->leaves.size()) std::abort();
            for (const auto& chunk : group.chunks) {
                if (chunk && chunk->offset + chunk->size > 1U << 20U) std::abort();
            }
        }
    }
    MemorySource source(rest);
    const std::uint64_t num_rows = data[2] + 256U * data[3];
    const omr::ColumnChunk chunk{0, rest.size() + data[6] % 2U, num_rows, data[1] % 4U,
                                 data[0] % 2 != 0, data[1] % 2U, 0};
    const Outcome large = read_all(source, chunk, 1000, 1U << 20U);
    const Outcome small = read_all(source, chunk, 1 + data[4] % 5U, 1 + 100U * data[5]);
    // However rows are cut into batches, they are the same; small batches may show more of them.
    if (large.whole != small.whole || large.rows > small.rows ||
        (large.rows == small.rows && large.digest != small.digest)) {
        std::abort();
    }
    return 0;
}

#ifdef STANDALONE
int main(int argc, char** argv) {
    const long rounds = argc > 1 ? std::strtol(argv[1], nullptr, 10) : 0;
    std::mt19937_64 random(7);
    std::uint64_t runs = 0;
    std::uint64_t whole = 0;
    for (int i = 2; i < argc; ++i) {
        std::ifstream file(argv[i], std::ios::binary);
        const std::vector<char> seed{std::istreambuf_iterator<char>(file), {}};
        for (long round = 0; round < rounds; ++round) {
            // Exactly sized on the heap, so that the address sanitizer sees any read past its end.
            std::vector<std::uint8_t> data(seed.begin(), seed.end());
            for (std::uint64_t n = random() % 4; n > 0 && !data.empty(); --n) {
                constexpr std::uint8_t kMarks[] = {0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF, 0x15};
                const bool early = random() % 2 == 0;  // where a page's structure is
                const std::size_t at = random() % (early ? std::min<std::size_t>(data.size(), 80)
                                                         : data.size());
                data[at] = random() % 2 == 0 ? kMarks[random() % std::size(kMarks)]
                                             : static_cast<std::uint8_t>(random());
            }
            if (random() % 8 == 0) data.resize(random() % (data.size() + 1));
            data.shrink_to_fit();
            LLVMFuzzerTestOneInput(data.data(), data.size());
            ++runs;
        }
        const std::span rest(reinterpret_cast<const std::uint8_t*>(seed.data()) + 8,
                             seed.size() - 8);
        MemorySource source(rest);
        const omr::ColumnChunk chunk{0, seed.size() - 8,
                                     static_cast<std::uint8_t>(seed[2]) +
                                         256U * static_cast<std::uint8_t>(seed[3]),
                                     static_cast<std::uint32_t>(seed[1]), seed[0] != 0, 0, 0};
        const bool is_footer = omr::parquet_footer(rest, 1U << 20U).has_value();
        whole += is_footer || read_all(source, chunk, 1000, 1U << 20U).whole ? 1 : 0;
    }
    std::cout << runs << ' ' << whole << '\n';
    return runs > 0 ? 0 : 1;
}
#endif
