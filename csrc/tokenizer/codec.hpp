// What Python calls `_C.Encoder`: a tokenizer with its way back.
#pragma once

#include "tokenizer/decode.hpp"
#include "tokenizer/encoder.hpp"

namespace omr {

struct Codec {
    Encoder encoder;
    Decoder decoder;
};

}  // namespace omr
