// The entry of libFuzzer, and of driver.cpp where there is no clang: the first byte names a target.
#include <array>

#include "fuzz.hpp"

namespace omr::fuzz {

std::vector<std::string> seeds() {
    using namespace std::string_literals;
    return {
        "The patient's CT isn't normal: 12.5 mg/dL, p<0.05 (n=24).\n\nA. left\r\nB. right  \n",
        "<think>It's 'S 'RE 'll 'D I'M we'VE</think><answer>B</answer><|im_end|><tool_call>",
        "\u00b5g/mL na\u00efve e\u0301 \u1e9b\u0323 \u212b \u2126 \u0958 \u0f71\u0f73 \U0001d15e \uac00\u11a8 \u1100\u1161\u11a8",
        "\u4e0a\u8179\u90e8 \u0440\u0435\u043d\u0442 \u03b1\u03b2 \u05d0 \u0663\u0664 \u00bd \u2167 \U0001f600\u200d\ufe0f \U000e0067 '\u017f ",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "                                                                  x\n\n\n   \n \t\t\x1c\x1f\u0085",
        "1234567890123 12 345'''''''''''''''''''''''''''''''''''''''''''''''----------------====",
        " the the The lesion of the left lobe; heart isn't enlarged. 2021, \\frac{a}{b} $x$ ",
        "Pneumonoultramicroscopic unreachable zq 777 a piece that is longer than any \r\n\r\n",
        "a\0b\0\0 \0"s,
    };
}

std::vector<std::string> dictionary() {
    return {
        "'s", "'S", "'re", "'LL", "'\u017f", "'", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000",
        "\u2028", "\u0085", "\x1c", "\x1f", "0", "123", "\u00bd", "\u0663", "\u2167", "a", "Z", "word", " the",
        "\u00e9", "e\u0301", "\u0301", "\u0323", "\u0327", "\u0f71", "\u0f72", "\u0f74", "\u0345", "\u05b0",
        "\u1dce", "\u3099", "\u1100", "\u1161", "\u11a8", "\uac00", "\u4e2d", "\u30ab", "\u212b", "\u0344",
        "\ufb1d", "\U0001f600", "\u200d", "\ufe0f", "\U0001d15e", "\U0001d400", "\uffff", "\U0010ffff", "\ue000",
        "<think>", "</think>", "<tool", "<tool_call>", "<|im_end|>", "<|im_start|>", "<|", "<", "caf\u00e9",
        "cafe\u0301", "\xff", "\xc3", "\xe2\x80", "\xf0\x9f", "................", "\u2014\u2014",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    };
}

}  // namespace omr::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using Target = void (*)(std::span<const std::uint8_t>);
    static constexpr std::array<Target, 8> targets{
        omr::fuzz::fuzz_split,  omr::fuzz::fuzz_split,  omr::fuzz::fuzz_encode,
        omr::fuzz::fuzz_encode, omr::fuzz::fuzz_encode, omr::fuzz::fuzz_encode,
        omr::fuzz::fuzz_kinds,  omr::fuzz::fuzz_compiled,
    };
    // What the tests see the driver by.
    static const bool self_test = std::getenv("OMR_FUZZ_SELF_TEST") != nullptr;
    REQUIRE(!self_test || std::string_view(reinterpret_cast<const char*>(data), size) != "\xff" "BREAK");
    if (size > 0) targets[data[0] % targets.size()]({data + 1, size - 1});
    return 0;
}
