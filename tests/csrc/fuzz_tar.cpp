// The scanner under a fuzzer or a sanitizer. With clang: -fsanitize=fuzzer,address,undefined.
// With -DSTANDALONE it mutates its input files itself: fuzz_tar ROUNDS FILE...
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <vector>

#include "tar_scanner.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        for (const omr::TarMember& member : omr::scan_tar({data, size})) {
            // What a caller relies on: data lies inside the tar, right after its header.
            if (member.data_offset != member.header_offset + 512) std::abort();
            if (member.data_offset > size || member.size > size - member.data_offset) std::abort();
            if (member.name.empty()) std::abort();
        }
    } catch (const omr::TarFormatError& error) {
        if (error.offset() > size) std::abort();
    }
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
            std::vector<std::uint8_t> tar(seed.begin(), seed.end());
            for (std::uint64_t n = random() % 6; n > 0 && !tar.empty(); --n) {
                tar[random() % tar.size()] = static_cast<std::uint8_t>(random());
            }
            // Half of the time mend the checksums, so that damage gets past them.
            for (std::size_t at = 0; random() % 2 == 0 && at + 512 <= tar.size(); at += 512) {
                if (tar[at + 257] != 'u') continue;
                unsigned sum = 0;
                for (std::size_t k = 0; k < 512; ++k) {
                    sum += k >= 148 && k < 156 ? 32U : tar[at + k];
                }
                for (std::size_t k = 6; k-- > 0; sum /= 8) {
                    tar[at + 148 + k] = static_cast<std::uint8_t>('0' + sum % 8);
                }
                tar[at + 154] = 0;
                tar[at + 155] = ' ';
            }
            if (random() % 4 == 0) tar.resize(random() % (tar.size() + 1));
            tar.shrink_to_fit();
            LLVMFuzzerTestOneInput(tar.data(), tar.size());
            ++runs;
        }
    }
    std::cout << runs << '\n';
    return runs > 0 ? 0 : 1;
}
#endif
