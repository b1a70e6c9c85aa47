// Runs the fuzz target where the compiler has no libFuzzer: mutations without feedback.
//
//     fuzz_tokenizer SECONDS [SEED] [INPUT FILE ...]     INPUT FILEs alone are run once each: SECONDS 0
//
// An input that breaks the target is written to crash-input.bin in the current folder.
#include <csignal>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
extern "C" void __sanitizer_set_death_callback(void (*callback)());
extern "C" const char* __asan_default_options();
extern "C" const char* __asan_default_options() { return "handle_abort=1:detect_leaks=1"; }

namespace {

constexpr unsigned patience = 60;  // seconds that one input may take
constexpr std::size_t pool_size = 256;
std::string current;  // what runs now

void keep_input() {
    std::ofstream file("crash-input.bin", std::ios::binary);
    file.write(current.data(), static_cast<std::streamsize>(current.size()));
    file.close();
    std::cerr << "the input is in crash-input.bin (" << current.size() << " bytes)\n";
}

void too_slow(int) {
    std::cerr << "an input took more than " << patience << " s\n";
    keep_input();
    _exit(3);
}

void run(std::string input) {
    current = std::move(input);
    alarm(patience);
    // Exactly sized on the heap, so that the sanitizer sees any read past its end.
    const omr::fuzz::Exact exact(current);
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(exact.data()), current.size());
}

class Mutator {
public:
    explicit Mutator(std::uint64_t seed) : random_(seed) {
        for (const std::string& text : omr::fuzz::seeds()) pool_.push_back("\x02\x01\x01" + text);
    }

    std::string next() {
        std::string input = pool_[below(pool_.size())];
        for (std::size_t n = 1 + below(below(4) == 0 ? 40 : 6); n > 0; --n) mutate(input);
        if (input.size() > limit()) input.resize(limit());
        for (std::size_t i = 0; i < 3 && i < input.size(); ++i) {
            input[i] = static_cast<char>(random_());  // target, vocabulary, options
        }
        if (below(40) == 0) {
            if (pool_.size() < pool_size) {
                pool_.push_back(input);
            } else {  // the first ones are the seeds
                pool_[omr::fuzz::seeds().size() + below(pool_size - omr::fuzz::seeds().size())] = input;
            }
        }
        return input;
    }

private:
    std::size_t below(std::size_t bound) { return random_() % bound; }
    std::size_t limit() { return below(50) == 0 ? 40'000 : 900; }

    void mutate(std::string& input) {
        const std::size_t at = below(input.size() + 1);
        const std::size_t span = std::min(below(20) + 1, input.size() - at);
        const std::string& other = pool_[below(pool_.size())];
        switch (below(8)) {
            case 0:
                if (at < input.size()) input[at] = static_cast<char>(input[at] ^ (1 << below(8)));
                break;
            case 1:
                if (at < input.size()) input[at] = static_cast<char>(random_());
                break;
            case 2: input.erase(at, span); break;
            case 3: input.insert(at, input.substr(at, span)); break;
            case 4: {  // a splice
                const std::size_t from = below(other.size() + 1);
                input.insert(at, other, from, below(80));
                break;
            }
            case 5: {  // a code point of any plane
                std::string letter;
                const std::uint64_t bits = random_() >> (64 - 1 - below(21));
                omr::fuzz::append_utf8(letter, static_cast<char32_t>(bits % 0x110000));
                input.insert(at, letter);
                break;
            }
            case 6: {  // a run, as long as a block of 64 bytes and then some
                std::string item = words_[below(words_.size())], run;
                for (std::size_t n = below(140); n > 0; --n) run += item;
                input.insert(at, run.substr(0, 400));
                break;
            }
            default: input.insert(at, words_[below(words_.size())]);
        }
    }

    std::mt19937_64 random_;
    std::vector<std::string> pool_, words_ = omr::fuzz::dictionary();
};

}  // namespace

int main(int argc, char** argv) {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    if (arguments.empty()) {
        std::cerr << "usage: fuzz_tokenizer SECONDS [SEED] [INPUT FILE ...]\n";
        return 2;
    }
    __sanitizer_set_death_callback(keep_input);
    std::signal(SIGALRM, too_slow);
    const std::chrono::duration<double> limit(std::stod(arguments[0]));
    Mutator mutator(arguments.size() > 1 ? std::stoull(arguments[1]) : 1);
    for (std::size_t i = 2; i < arguments.size(); ++i) {
        std::ifstream file(arguments[i], std::ios::binary);
        run({std::istreambuf_iterator<char>(file), {}});
    }
    const auto start = std::chrono::steady_clock::now();
    std::uint64_t runs = 0;
    while (std::chrono::steady_clock::now() - start < limit) {
        run(mutator.next());
        ++runs;
    }
    std::cout << runs << " inputs, nothing broken\n";
}
