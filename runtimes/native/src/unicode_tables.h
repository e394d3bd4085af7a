// What the tokenizers package knows of Unicode, as sorted tables; unicode.h asks them. Written by ../unicode_tables.py, which
// says where they come from.
#pragma once

#include <cstddef>

namespace edgeqkv {

template <class Row>
struct Table {
  const Row* rows;
  size_t size;
  const Row* begin() const { return rows; }
  const Row* end() const { return rows + size; }
};

struct CodeRange {
  char32_t first, last;
};

struct ClassRange {
  char32_t first, last;
  unsigned char value;  // canonical combining class, not 0
};

struct Decomposition {
  char32_t code;
  char32_t parts[4];  // full and in canonical order; 0 after the last
};

struct Composition {
  char32_t first, second, composed;
};

extern const Table<CodeRange> kLetters;  // \p{L}
extern const Table<CodeRange> kNumbers;  // \p{N}
extern const Table<CodeRange> kSpaces;   // \s
extern const Table<CodeRange> kWords;    // \w: what may not touch an added token that is a single word
extern const Table<ClassRange> kCombiningClasses;
extern const Table<Decomposition> kDecompositions;  // canonical, without Hangul's
extern const Table<Composition> kCompositions;      // by first and second, without Hangul's

}  // namespace edgeqkv
