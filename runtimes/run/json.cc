#include "json.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "error.h"

namespace edgeqkv {
namespace {

class Reader {
 public:
  explicit Reader(const std::string& text) : text_(text) {}

  Json document() {
    Json value = read(0);
    space();
    if (place_ != text_.size()) fail();
    return value;
  }

 private:
  static constexpr int kDepth = 64;

  [[noreturn]] void fail() const { throw Error("not JSON from byte " + std::to_string(place_)); }

  char peek() const { return place_ < text_.size() ? text_[place_] : '\0'; }

  void space() {
    while (place_ < text_.size() && text_[place_] && std::strchr(" \t\r\n", text_[place_])) place_++;
  }

  void expect(const char* word) {
    const size_t n = std::strlen(word);
    if (text_.compare(place_, n, word) != 0) fail();
    place_ += n;
  }

  bool take(char c) {
    space();
    if (peek() != c) return false;
    place_++;
    return true;
  }

  Json read(int depth) {
    if (depth > kDepth) fail();
    space();
    Json value;
    switch (peek()) {
      case '{':
        object(value, depth);
        break;
      case '[':
        array(value, depth);
        break;
      case '"':
        value.kind = Json::kString;
        value.text = string();
        break;
      case 't':
      case 'f':
        value.kind = Json::kBool;
        value.number = peek() == 't';
        expect(value.number != 0 ? "true" : "false");
        break;
      case 'n':
        expect("null");
        break;
      default:
        number(value);
    }
    return value;
  }

  void object(Json& value, int depth) {
    value.kind = Json::kObject;
    place_++;
    if (take('}')) return;
    do {
      space();
      if (peek() != '"') fail();
      std::string name = string();
      if (!take(':')) fail();
      if (value.fields.emplace(name, read(depth + 1)).second) value.keys.push_back(name);
    } while (take(','));
    if (!take('}')) fail();
  }

  void array(Json& value, int depth) {
    value.kind = Json::kArray;
    place_++;
    if (take(']')) return;
    do value.items.push_back(read(depth + 1));
    while (take(','));
    if (!take(']')) fail();
  }

  void number(Json& value) {
    value.kind = Json::kNumber;
    const size_t after = std::min(text_.find_first_not_of("+-.0123456789eE", place_), text_.size());
    const std::string digits = text_.substr(place_, after - place_);
    char* end = nullptr;
    value.number = std::strtod(digits.c_str(), &end);
    if (digits.empty() || *end || !std::isfinite(value.number)) fail();
    place_ = after;
  }

  // One of the first 65536 code points; a half of a pair beyond them becomes "?".
  static void append_utf8(unsigned code, std::string& out) {
    if (code >= 0xd800 && code < 0xe000) code = '?';
    if (code >= 0x800) out += char(0xe0 | code >> 12);
    if (code >= 0x80) out += char((code >= 0x800 ? 0x80 : 0xc0) | (code >> 6 & (code >= 0x800 ? 0x3f : 0x1f)));
    out += char(code >= 0x80 ? 0x80 | (code & 0x3f) : code);
  }

  std::string string() {
    std::string out;
    for (place_++; peek() != '"'; place_++) {
      if (place_ >= text_.size()) fail();
      if (peek() != '\\') {
        out += peek();
        continue;
      }
      place_++;
      static const char names[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
      const char* name = std::strchr(names, peek());
      if (peek() == 'u') {
        if (place_ + 4 >= text_.size()) fail();
        const std::string digits = text_.substr(place_ + 1, 4);
        if (digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) fail();
        append_utf8(unsigned(std::strtoul(digits.c_str(), nullptr, 16)), out);
        place_ += 4;
      } else if (peek() && name) {
        out += meant[name - names];
      } else {
        fail();
      }
    }
    place_++;
    return out;
  }

  const std::string& text_;
  size_t place_ = 0;
};

}  // namespace

const Json& Json::at(const std::string& name) const {
  const auto found = fields.find(name);
  if (found == fields.end()) throw Error("the field '" + name + "' is missing");
  return found->second;
}

const std::string& Json::string() const {
  if (kind != kString) throw Error("a field that should be a text is none");
  return text;
}

int64_t Json::integer() const {
  if (kind != kNumber || number != std::floor(number) || std::fabs(number) > 9e15)
    throw Error("a field that should be a whole number is none");
  return int64_t(number);
}

const std::vector<Json>& Json::array() const {
  if (kind != kArray) throw Error("a field that should be a list is none");
  return items;
}

Json parse_json(const std::string& text) { return Reader(text).document(); }

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    char escaped[8];
    std::snprintf(escaped, sizeof escaped, "\\u%04x", unsigned(c));
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 32 ? std::string(escaped) : std::string(1, c);
  }
  return out + '"';
}

}  // namespace edgeqkv
