// JPEG segments, plain JPEGs, plain rows, texts and tar headers under a fuzzer or a sanitizer.
// With clang: -fsanitize=fuzzer,address,undefined.
// With -DSTANDALONE it mutates its input files itself: fuzz_samples ROUNDS FILE...
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "crc32c.hpp"
#include "jpeg_segments.hpp"
#include "plain_question.hpp"
#include "plain_rows.hpp"
#include "tar_header.hpp"
#include "texts.hpp"

namespace {

// Two rows whose columns all look into the input: its first bytes are the offsets and validity.
void try_plain_rows(std::span<const std::uint8_t> data) {
    constexpr std::size_t kHead = 24;
    if (data.size() < kHead) return;
    const auto rest = data.subspan(kHead);
    const auto size = static_cast<std::int32_t>(rest.size());
    const std::int32_t sound[] = {0, size / 2, size};
    const std::int32_t all[] = {0, static_cast<std::int32_t>(data.size()), 0};
    const auto offsets = data[0] % 2 == 0
                             ? data.subspan(1, 12)
                             : std::span(reinterpret_cast<const std::uint8_t*>(sound), sizeof sound);
    const omr::ByteColumn column = omr::ArrowBytes{data.subspan(20, data[13] % 2), offsets, rest, data[14] % 3U,
                                 data[15] % 4 == 0 ? 8U : 4U};
    const auto once = std::span(reinterpret_cast<const std::uint8_t*>(all), sizeof all);
    const omr::ByteColumn whole = omr::ArrowBytes{{}, once, data, 0, 4};  // the second row leads nowhere
    static const std::string question = "Which?\nA. one\nB. two";
    static const std::string letter = "A";
    const auto bytes = [](const std::string& text) {
        return std::span(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
    };
    const std::int32_t same[] = {0, static_cast<std::int32_t>(question.size()), 0, 1};
    const auto places = std::span(reinterpret_cast<const std::uint8_t*>(same), sizeof same);
    const omr::ByteColumn good = omr::ArrowBytes{{}, places.subspan(0, 8), bytes(question), 0, 4};
    const omr::ByteColumn answer = omr::ArrowBytes{{}, places.subspan(8, 8), bytes(letter), 0, 4};
    const omr::PlainRules rules{"f.parquet", "f", 7, 1 << 20, 1 << 20, 200, data[16] % 2 == 0};
    // All columns hostile; then only the image, and the texts around it plain.
    const omr::PlainColumns columns[] = {{&column, &column, &column, &column, &column, &column},
                                         {&whole, &answer, &good, &answer, nullptr, nullptr},
                                         {&whole, &whole, &whole, &whole, &whole, nullptr}};
    omr::PlainBatch batch;
    for (const omr::PlainColumns& given : columns) {
        omr::plain_rows(given, 2, rules, batch);
        if (batch.size() != 2) std::abort();
        for (std::size_t row = 0; row < 2; ++row) {
            if (batch.plain[row] != 0) (void)omr::index_lines(batch, row, row + 1, 512);
        }
    }
}

void try_texts(std::string_view text) {
    std::vector<std::string_view> options;
    if (omr::plain_options(text, options) && (options.size() < 2 || options.size() > 26)) {
        std::abort();
    }
    (void)omr::text_kind(text);
    (void)omr::plain_letter(text);
    (void)omr::plain_trace_letter(text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    bool is_jpeg = false;
    try {
        is_jpeg = omr::jpeg_segments({data, size}, false).back().stop == size;
    } catch (const omr::JpegFormatError&) {
        is_jpeg = false;
    }
    if (omr::plain_jpeg({data, size}) && !is_jpeg) std::abort();

    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const bool is_printable = std::none_of(text.begin(), text.end(), [](char c) {
        const auto byte = static_cast<unsigned char>(c);
        return byte == 0x7F || (byte < 0x20 && c != '\t' && c != '\n' && c != '\r');
    });
    if (omr::is_printable(text) != is_printable) std::abort();
    std::string json;
    omr::append_json_string(json, text);
    if (json.size() < size + 2 || json.front() != '"' || json.back() != '"') std::abort();
    (void)omr::tar_header(text.substr(0, size % 120), size);
    try_texts(text);
    try_plain_rows({data, size});
    if (omr::crc32c({data, size}) != omr::crc32c_by_table({data, size})) std::abort();
    return 0;
}

#ifdef STANDALONE
int main(int argc, char** argv) {
    const long rounds = argc > 1 ? std::strtol(argv[1], nullptr, 10) : 0;
    std::mt19937_64 random(7);
    std::uint64_t runs = 0;
    for (int i = 2; i < argc; ++i) {
        std::ifstream file(argv[i], std::ios::binary);
        const std::vector<char> seed{std::istreambuf_iterator<char>(file), {}};
        for (long round = 0; round < rounds; ++round) {
            // Exactly sized on the heap, so that the address sanitizer sees any read past its end.
            std::vector<std::uint8_t> data(seed.begin(), seed.end());
            for (std::uint64_t n = random() % 4; n > 0 && !data.empty(); --n) {
                // In the header, where structure is; half of the time a byte that means something.
                constexpr std::string_view kMarks("\xFF\xD9\xDA\xC0\xE0\xEE\0\x02", 8);
                const std::size_t at = random() % std::min<std::size_t>(data.size(), 700);
                const auto mark = static_cast<std::uint8_t>(kMarks[random() % kMarks.size()]);
                data[at] = random() % 2 == 0 ? mark : static_cast<std::uint8_t>(random());
            }
            if (random() % 4 == 0) data.resize(random() % (data.size() + 1));
            data.shrink_to_fit();
            LLVMFuzzerTestOneInput(data.data(), data.size());
            ++runs;
        }
    }
    std::cout << runs << '\n';
    return runs > 0 ? 0 : 1;
}
#endif
