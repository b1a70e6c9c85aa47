// Every form of `split` that this processor has, against split_scalar.
//
//   check_split sequences LENGTH   every sequence of LENGTH traps around a block's edge
//   check_split characters         every code point among some neighbours
//   check_split random ROUNDS      long texts of few kinds of characters, resumed at any capacity
//
// Texts end where a page ends that is followed by one which nobody may read. Prints how many splits
// were compared; stops with status 1 at the first difference.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/split.hpp"

namespace {

using Ends = std::vector<std::uint32_t>;

constexpr std::size_t room = 1 << 20;
constexpr std::uint32_t untouched = 0xABAD1DEA;
std::uint64_t compared = 0;

char* guarded_end() {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                        -1, 0);
    if (memory == MAP_FAILED) std::abort();
    char* end = static_cast<char*>(memory) + room;
    if (mprotect(end, page, PROT_NONE) != 0) std::abort();
    return end;
}

[[noreturn]] void fail(std::string_view text, omr::Pattern pattern, omr::Instructions instructions,
                       std::size_t capacity, const char* what) {
    std::cerr << what << ": pattern " << static_cast<int>(pattern) << ", instructions "
              << static_cast<int>(instructions) << ", capacity " << capacity << ", text";
    for (const char byte : text) {
        std::cerr << ' ' << std::hex << static_cast<int>(static_cast<std::uint8_t>(byte));
    }
    std::cerr << '\n';
    std::exit(1);
}

Ends whole(std::string_view text, omr::Pattern pattern, omr::Instructions instructions,
           std::size_t capacity) {
    Ends all;
    static Ends some;
    some.resize(capacity + 1);
    std::size_t start = 0;
    while (true) {
        some[capacity] = untouched;
        const std::size_t count =
            omr::split(pattern, text, start, some.data(), capacity, instructions);
        if (some[capacity] != untouched) {
            fail(text, pattern, instructions, capacity, "wrote beyond its room");
        }
        all.insert(all.end(), some.begin(), some.begin() + static_cast<std::ptrdiff_t>(count));
        if (count != 0) start = all.back();
        if (count < capacity) break;
    }
    if (start != text.size()) fail(text, pattern, instructions, capacity, "stopped early");
    return all;
}

void compare(const std::string& bytes, std::size_t capacity) {
    static char* const end = guarded_end();
    if (bytes.size() > room) std::abort();
    std::memcpy(end - bytes.size(), bytes.data(), bytes.size());
    const std::string_view text(end - bytes.size(), bytes.size());
    for (const auto pattern : {omr::Pattern::qwen2, omr::Pattern::llama3}) {
        const Ends right = whole(text, pattern, omr::Instructions::scalar, capacity);
        for (int set = 1; set <= static_cast<int>(omr::best_instructions()); ++set) {
            const auto instructions = static_cast<omr::Instructions>(set);
            if (whole(text, pattern, instructions, capacity) != right) {
                fail(text, pattern, instructions, capacity, "differs");
            }
            ++compared;
        }
    }
}

// One of each class and length in UTF-8, and what contractions are made of.
const std::vector<std::string> traps = {
    "a",          "s",            "'",
    "1",          " ",            "\n",
    ".",          "\xC5\xBF",     "\xC2\xA0",          // U+017F; no-break space
    "\xD9\xA3",   "\xE3\x80\x80", "\xE2\x89\xA5",      // an Arabic three; ideographic space; >=
};
const std::vector<std::string> more_traps = {
    "t",        "M",        "d",        "re",       "VE",       "ll",       "'S",
    "\t",       "\r",       "\r\n",     "\n\n",     "  ",       "\v",       "\x1C",
    "\x7F",     std::string(1, '\0'),   "22",       "333",      "-",        "!?",
    "\xC2\x85", "\xC2\xB2", "\xC2\xB5", "\xC3\x97", "\xC3\xA9", "\xCC\x81", "\xCE\x87",
    "\xCE\xA2", "\xCE\xB2", "\xCF\xB6", "\xD0\xB6", "\xD7\x90", "\xE0\xA5\xA9",
    "\xE2\x80\x89", "\xE2\x80\xA8", "\xE3\x81\xAE", "\xE4\xB7\x80", "\xE4\xB8\xAD",
    "\xEA\xB0\x80", "\xEF\xBC\x93", "\xF0\x9F\x91\x8D", "\xF0\x9D\x92\xB3", "\xF0\x9D\x9F\x98",
    "\xF4\x8F\xBF\xBF", std::string(61, 'x'), std::string(64, ' '), std::string(65, '7'),
};

void sequences(std::size_t length) {
    std::string words;  // so that the sequence's block is not the text's last
    while (words.size() < 80) words += "bc de ";
    std::vector<std::size_t> digits(length, 0);
    while (true) {
        std::string sequence;
        for (const std::size_t digit : digits) sequence += traps[digit];
        for (std::size_t before = 58; before <= 66; ++before) {
            compare(std::string(before, 'x') + sequence, 256);
            compare(std::string(before - 1, 'x') + ' ' + sequence + words, 256);
        }
        std::size_t at = 0;
        while (at < length && ++digits[at] == traps.size()) digits[at++] = 0;
        if (at == length) return;
    }
}

std::string utf8(std::uint32_t code_point) {
    const auto byte = [](std::uint32_t value) { return static_cast<char>(value); };
    if (code_point < 0x80) return {byte(code_point)};
    const char last = byte(0x80 | (code_point & 63));
    if (code_point < 0x800) return {byte(0xC0 | code_point >> 6), last};
    const char third = byte(0x80 | (code_point >> 6 & 63));
    if (code_point < 0x10000) return {byte(0xE0 | code_point >> 12), third, last};
    return {byte(0xF0 | code_point >> 18), byte(0x80 | (code_point >> 12 & 63)), third, last};
}

void characters() {
    for (std::uint32_t code_point = 0; code_point < 0x110000; ++code_point) {
        if (code_point >= 0xD800 && code_point < 0xE000) continue;
        const std::string c = utf8(code_point);
        const std::string text = c + "a" + c + c + "1" + c + ".a '" + c + "b " + c + "\n " + c +
                                 "\n" + c + "'s" + c + c + c + c + ". " + c + "  " + c;
        compare(std::string(64 - code_point % 40, 'x') + text, 256);
    }
}

void random(std::uint64_t rounds) {
    std::mt19937_64 random(7);
    std::vector<std::string> all = traps;
    all.insert(all.end(), more_traps.begin(), more_traps.end());
    for (std::uint64_t round = 0; round < rounds; ++round) {
        std::vector<std::string> kinds;  // few kinds make long runs
        for (std::uint64_t n = 1 + random() % 8; n > 0; --n) {
            kinds.push_back(all[random() % all.size()]);
        }
        std::string text;
        for (std::uint64_t n = random() % (round % 8 == 0 ? 2000 : 200); n > 0; --n) {
            text += kinds[random() % kinds.size()];
        }
        compare(text, 64 + random() % 200);
    }
}

}  // namespace

int main(int argc, char** argv) {
    const std::string_view what = argc > 1 ? argv[1] : "";
    const std::uint64_t number = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
    if (what == "sequences" && number > 0) {
        sequences(number);
    } else if (what == "characters") {
        characters();
    } else if (what == "random") {
        random(number);
    } else {
        std::cerr << "check_split sequences LENGTH | characters | random ROUNDS\n";
        return 2;
    }
    std::cout << compared << '\n';
    return 0;
}
