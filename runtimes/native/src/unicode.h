// Kinds of characters and normalization form C, as the tokenizers package has them (see unicode_tables.py for its versions).
#pragma once

#include <string>
#include <string_view>

namespace edgeqkv {

bool is_letter(char32_t code);  // \p{L}
bool is_number(char32_t code);  // \p{N}
bool is_space(char32_t code);   // \s
bool is_word(char32_t code);    // \w, for added tokens that are single words

// Normalization form C of valid UTF-8.
std::string nfc(std::string_view text);

}  // namespace edgeqkv
