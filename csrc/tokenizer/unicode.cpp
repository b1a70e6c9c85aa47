#include "tokenizer/unicode.hpp"

#include "tokenizer/code_points.hpp"

namespace omr {

CharClass char_class(char32_t code_point) { return class_of(code_point); }

}  // namespace omr
