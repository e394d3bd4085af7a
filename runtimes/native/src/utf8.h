// UTF-8 as RFC 3629 defines it: no surrogates, no overlong forms, nothing beyond U+10FFFF.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace edgeqkv {

constexpr char32_t kReplacement = 0xfffd;

struct Utf8Char {
  enum State { kWhole, kCut, kInvalid } state;  // kCut: the text ends within the character
  size_t bytes;                                 // 1 to 4; unless whole, the longest beginning of a character, or 1
  char32_t code;                                // kReplacement unless whole
};

// The character that starts at text[place]; place < text.size(). One kReplacement for each that is not whole is what Unicode
// (chapter 3.9, "maximal subparts"), Python and Rust put in place of bytes that are no UTF-8.
inline Utf8Char utf8_at(std::string_view text, size_t place) {
  const unsigned first = static_cast<unsigned char>(text[place]);
  if (first < 0x80) return {Utf8Char::kWhole, 1, first};
  if (first < 0xc2 || first > 0xf4) return {Utf8Char::kInvalid, 1, kReplacement};
  const size_t bytes = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  // The second byte has a narrower range where an overlong form, a surrogate or more than U+10FFFF would follow.
  unsigned low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
  unsigned high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
  char32_t code = first & (0x7f >> bytes);
  for (size_t i = 1; i < bytes; i++) {
    if (place + i == text.size()) return {Utf8Char::kCut, i, kReplacement};
    const unsigned byte = static_cast<unsigned char>(text[place + i]);
    if (byte < low || byte > high) return {Utf8Char::kInvalid, i, kReplacement};
    code = code << 6 | (byte & 0x3f);
    low = 0x80;
    high = 0xbf;
  }
  return {Utf8Char::kWhole, bytes, code};
}

// Appends a code point that is no surrogate.
inline void append_utf8(char32_t code, std::string& out) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | (code >> shift & 0x3f)); };
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xc0 | code >> 6);
    tail(0);
  } else if (code < 0x10000) {
    out += static_cast<char>(0xe0 | code >> 12);
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xf0 | code >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

}  // namespace edgeqkv
