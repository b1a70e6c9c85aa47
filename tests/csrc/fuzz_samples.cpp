// JPEG segments, plain JPEGs, texts and tar headers under a fuzzer or a sanitizer.
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
#include <string>
#include <string_view>
#include <vector>

#include "jpeg_segments.hpp"
#include "tar_header.hpp"
#include "texts.hpp"

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
