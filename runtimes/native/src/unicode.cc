#include "unicode.h"

#include <algorithm>
#include <vector>

#include "unicode_tables.h"
#include "utf8.h"

namespace edgeqkv {
namespace {

// The row whose range holds `code`, or nullptr.
template <class Row>
const Row* find_range(const Table<Row>& table, char32_t code) {
  const Row* row = std::lower_bound(table.begin(), table.end(), code, [](const Row& r, char32_t c) { return r.last < c; });
  return row != table.end() && row->first <= code ? row : nullptr;
}

// Hangul syllables are made of jamo by arithmetic (Unicode, chapter 3.12).
constexpr char32_t kSyllables = 0xac00, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11a7;
constexpr char32_t kLeadCount = 19, kVowelCount = 21, kTailCount = 28;
constexpr char32_t kSyllableCount = kLeadCount * kVowelCount * kTailCount;

struct Mark {
  char32_t code;
  unsigned char combining_class;
};

void append(char32_t code, std::vector<Mark>& out) {
  const ClassRange* found = find_range(kCombiningClasses, code);
  out.push_back({code, found ? found->value : static_cast<unsigned char>(0)});
}

void append_decomposed(char32_t code, std::vector<Mark>& out) {
  if (code >= kSyllables && code < kSyllables + kSyllableCount) {
    const char32_t index = code - kSyllables;
    append(kLeads + index / kTailCount / kVowelCount, out);
    append(kVowels + index / kTailCount % kVowelCount, out);
    if (index % kTailCount) append(kTails + index % kTailCount, out);
    return;
  }
  const Decomposition* found = std::lower_bound(kDecompositions.begin(), kDecompositions.end(), code,
                                                [](const Decomposition& d, char32_t c) { return d.code < c; });
  if (found == kDecompositions.end() || found->code != code) return append(code, out);
  for (const char32_t part : found->parts)
    if (part) append(part, out);
}

// The composition of two code points, or 0.
char32_t compose(char32_t first, char32_t second) {
  if (first - kLeads < kLeadCount && second - kVowels < kVowelCount)
    return kSyllables + ((first - kLeads) * kVowelCount + second - kVowels) * kTailCount;
  if (first - kSyllables < kSyllableCount && (first - kSyllables) % kTailCount == 0 && second > kTails &&
      second < kTails + kTailCount)
    return first + second - kTails;
  const auto less = [](const Composition& a, const Composition& b) {
    return a.first != b.first ? a.first < b.first : a.second < b.second;
  };
  const Composition wanted{first, second, 0};
  const Composition* found = std::lower_bound(kCompositions.begin(), kCompositions.end(), wanted, less);
  return found != kCompositions.end() && !less(wanted, *found) ? found->composed : 0;
}

// The canonical ordering algorithm: marks between two starters (class 0) by class.
void order(std::vector<Mark>& text) {
  const auto is_starter = [](const Mark& m) { return m.combining_class == 0; };
  for (auto from = text.begin(); from != text.end();) {
    const auto to = std::find_if(from, text.end(), is_starter);
    std::stable_sort(from, to, [](const Mark& a, const Mark& b) { return a.combining_class < b.combining_class; });
    from = std::find_if_not(to, text.end(), is_starter);
  }
}

// The canonical composition algorithm: a character joins the last starter unless one that was kept between them blocks it.
void compose(std::vector<Mark>& text) {
  constexpr size_t none = static_cast<size_t>(-1);
  size_t kept = 0, starter = none;
  for (const Mark mark : text) {
    if (starter != none && (starter + 1 == kept || text[kept - 1].combining_class < mark.combining_class)) {
      if (const char32_t composed = compose(text[starter].code, mark.code)) {
        text[starter].code = composed;
        continue;
      }
    }
    if (mark.combining_class == 0) starter = kept;
    text[kept++] = mark;
  }
  text.resize(kept);
}

}  // namespace

bool is_letter(char32_t code) { return code < 0x80 ? (code | 0x20) - 'a' < 26 : find_range(kLetters, code) != nullptr; }
bool is_number(char32_t code) { return code < 0x80 ? code - '0' < 10 : find_range(kNumbers, code) != nullptr; }
bool is_space(char32_t code) { return find_range(kSpaces, code) != nullptr; }
bool is_word(char32_t code) { return find_range(kWords, code) != nullptr; }

std::string nfc(std::string_view text) {
  // Below U+0300, whose first byte is 0xcc, nothing changes and nothing combines.
  const auto changes = [](char c) { return static_cast<unsigned char>(c) >= 0xcc; };
  if (std::none_of(text.begin(), text.end(), changes)) return std::string(text);
  std::vector<Mark> marks;
  marks.reserve(text.size());
  for (size_t place = 0; place < text.size();) {
    const Utf8Char c = utf8_at(text, place);
    append_decomposed(c.code, marks);
    place += c.bytes;
  }
  order(marks);
  compose(marks);
  std::string out;
  out.reserve(text.size());
  for (const Mark mark : marks) append_utf8(mark.code, out);
  return out;
}

}  // namespace edgeqkv
