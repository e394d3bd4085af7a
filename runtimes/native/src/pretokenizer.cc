#include "pretokenizer.h"

#include "unicode.h"
#include "utf8.h"

namespace edgeqkv {
namespace {

enum Kind { kLetter, kNumber, kSpace, kOther, kEnd };

struct Char {
  Kind kind;
  char32_t code;
  size_t end;  // where the next one starts
};

Char char_at(std::string_view text, size_t place) {
  if (place == text.size()) return {kEnd, 0, place};
  const Utf8Char c = utf8_at(text, place);
  const Kind kind = is_letter(c.code) ? kLetter : is_number(c.code) ? kNumber : is_space(c.code) ? kSpace : kOther;
  return {kind, c.code, place + c.bytes};
}

// The end of up to `most` characters of one kind.
size_t run_end(std::string_view text, size_t place, Kind kind, size_t most = std::string_view::npos) {
  for (; most > 0; most--) {
    const Char c = char_at(text, place);
    if (c.kind != kind) break;
    place = c.end;
  }
  return place;
}

// In either case; the long s is an s to the engine.
char32_t folded(char32_t code) { return code >= 'A' && code <= 'Z' ? code + 32 : code == 0x17f ? 's' : code; }

// 's|'t|'re|'ve|'m|'ll|'d at an apostrophe: the end of what matches, or 0.
size_t contraction_end(std::string_view text, const Char& apostrophe, bool any_case) {
  const Char first = char_at(text, apostrophe.end), second = char_at(text, first.end);
  const char32_t a = any_case ? folded(first.code) : first.code, b = any_case ? folded(second.code) : second.code;
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return first.end;
  if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return second.end;
  return 0;
}

// \s+(?!\S)|\s+: spaces, without the last one where something else follows it.
size_t spaces_end(std::string_view text, size_t start, size_t run_end) {
  if (run_end == text.size()) return run_end;
  size_t last = run_end - 1;
  while ((static_cast<unsigned char>(text[last]) & 0xc0) == 0x80) last--;
  return last == start ? run_end : last;
}

constexpr std::string_view kNewlines = "\r\n";

//  's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
size_t gpt2_piece_end(std::string_view text, size_t start) {
  const Char first = char_at(text, start);
  if (first.code == '\'')
    if (const size_t end = contraction_end(text, first, false)) return end;
  if (first.kind != kSpace) return run_end(text, first.end, first.kind);
  const Char second = char_at(text, first.end);
  if (first.code == ' ' && second.kind != kSpace && second.kind != kEnd) return run_end(text, second.end, second.kind);
  return spaces_end(text, start, run_end(text, first.end, kSpace));
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
size_t llama3_piece_end(std::string_view text, size_t start, size_t digits) {
  const Char first = char_at(text, start);
  if (first.code == '\'')
    if (const size_t end = contraction_end(text, first, true)) return end;
  if (first.kind == kLetter) return run_end(text, first.end, kLetter);
  if (first.kind == kNumber) return run_end(text, start, kNumber, digits);
  const Char second = char_at(text, first.end);
  if (second.kind == kLetter && first.code != '\r' && first.code != '\n') return run_end(text, second.end, kLetter);
  if (first.kind == kOther || (first.code == ' ' && second.kind == kOther)) {
    const size_t end = text.find_first_not_of(kNewlines, run_end(text, first.end, kOther));
    return end == text.npos ? text.size() : end;
  }
  const size_t end = run_end(text, first.end, kSpace);
  const size_t newline = text.substr(start, end - start).find_last_of(kNewlines);
  return newline != text.npos ? start + newline + 1 : spaces_end(text, start, end);
}

}  // namespace

std::optional<Splitter> splitter_of(std::string_view regex) {
  if (regex == R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)") return Splitter::kGpt2;
  constexpr std::string_view before = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})";
  constexpr std::string_view digits = "{1,3}";
  constexpr std::string_view after = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  if (regex.substr(0, before.size()) != before) return {};
  regex.remove_prefix(before.size());
  if (regex == after) return Splitter::kQwen2;
  if (regex.substr(0, digits.size()) == digits && regex.substr(digits.size()) == after) return Splitter::kLlama3;
  return {};
}

size_t piece_end(Splitter splitter, std::string_view text, size_t start) {
  switch (splitter) {
    case Splitter::kGpt2: return gpt2_piece_end(text, start);
    case Splitter::kLlama3: return llama3_piece_end(text, start, 3);
    default: return llama3_piece_end(text, start, 1);
  }
}

}  // namespace edgeqkv
