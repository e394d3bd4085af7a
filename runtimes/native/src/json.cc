#include "json.h"

#include <algorithm>
#include <charconv>
#include <clocale>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <numeric>

#include "error.h"
#include "utf8.h"

namespace edgeqkv {
namespace {

constexpr int kMaxDepth = 64;

class Reader {
 public:
  Reader(std::string_view text, size_t values) : text_(text), values_left_(values) {}

  Json document() {
    Json value = read(0);
    skip_space();
    if (place_ != text_.size()) fail("more text after its end");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& why) const {
    throw Error("not JSON from byte " + std::to_string(place_) + ": " + why);
  }

  // '\0' at the end, which is no part of JSON's grammar either.
  char peek() const { return place_ < text_.size() ? text_[place_] : '\0'; }

  void skip_space() { place_ = std::min(text_.find_first_not_of(" \t\r\n", place_), text_.size()); }

  bool take(char c) {
    if (peek() != c) return false;
    place_++;
    return true;
  }

  Json word(std::string_view name, Json::Kind kind) {
    if (text_.substr(place_, name.size()) != name) fail("expected a value");
    place_ += name.size();
    Json value;
    value.kind = kind;
    return value;
  }

  Json read(int depth) {
    if (depth > kMaxDepth) fail("nested too deep");
    if (values_left_-- == 0) fail("too many values");
    skip_space();
    switch (peek()) {
      case '{': return object(depth);
      case '[': return array(depth);
      case '"': return string_value();
      case 't': return word("true", Json::kTrue);
      case 'f': return word("false", Json::kFalse);
      case 'n': return word("null", Json::kNull);
      default: return number();
    }
  }

  Json object(int depth) {
    Json value;
    value.kind = Json::kObject;
    place_++;
    skip_space();
    if (take('}')) return value;
    do {
      skip_space();
      if (peek() != '"') fail("expected a key");
      value.keys.push_back(string());
      skip_space();
      if (!take(':')) fail("expected ':'");
      value.items.push_back(read(depth + 1));
      skip_space();
    } while (take(','));
    if (!take('}')) fail("expected ',' or '}'");
    refuse_duplicates(value.keys);
    return value;
  }

  void refuse_duplicates(const std::vector<std::string>& keys) const {
    std::vector<size_t> order(keys.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return keys[a] < keys[b]; });
    const auto twin = std::adjacent_find(order.begin(), order.end(), [&](size_t a, size_t b) { return keys[a] == keys[b]; });
    if (twin != order.end()) throw Error("the key " + shown(keys[*twin]) + " stands twice in one object");
  }

  Json array(int depth) {
    Json value;
    value.kind = Json::kArray;
    place_++;
    skip_space();
    if (take(']')) return value;
    do {
      value.items.push_back(read(depth + 1));
      skip_space();
    } while (take(','));
    if (!take(']')) fail("expected ',' or ']'");
    return value;
  }

  void digits() {
    const size_t from = place_;
    while (peek() >= '0' && peek() <= '9') place_++;
    if (place_ == from) fail("expected a value");
  }

  Json number() {
    Json value;
    value.kind = Json::kInteger;
    const size_t from = place_;
    take('-');
    if (!take('0')) digits();
    if (take('.')) {
      value.kind = Json::kReal;
      digits();
    }
    if (take('e') || take('E')) {
      value.kind = Json::kReal;
      if (!take('+')) take('-');
      digits();
    }
    value.text = text_.substr(from, place_ - from);
    return value;
  }

  Json string_value() {
    Json value;
    value.kind = Json::kString;
    value.text = string();
    return value;
  }

  std::string string() {
    std::string out;
    place_++;
    while (!take('"')) {
      if (place_ == text_.size()) fail("a string without an end");
      if (take('\\')) {
        escape(out);
        continue;
      }
      const Utf8Char c = utf8_at(text_, place_);
      if (c.state != Utf8Char::kWhole) fail("no UTF-8");
      if (c.code < 0x20) fail("a control character in a string");
      out.append(text_, place_, c.bytes);
      place_ += c.bytes;
    }
    return out;
  }

  void escape(std::string& out) {
    constexpr std::string_view names = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
    if (take('u')) {
      char32_t code = hex4();
      if (code >= 0xd800 && code < 0xdc00 && text_.substr(place_, 2) == "\\u") {
        place_ += 2;
        const char32_t low = hex4();
        if (low < 0xdc00 || low > 0xdfff) fail("half of a surrogate pair");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
      }
      if (code >= 0xd800 && code < 0xe000) fail("half of a surrogate pair");
      append_utf8(code, out);
      return;
    }
    const size_t which = names.find(peek());
    if (place_ == text_.size() || which == names.npos) fail("no such escape");
    out += meant[which];
    place_++;
  }

  char32_t hex4() {
    unsigned code = 0;
    const std::string_view digits = text_.substr(place_, 4);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    if (digits.size() != 4 || error != std::errc() || end != digits.data() + 4) fail("expected four hexadecimal digits");
    place_ += 4;
    return code;
  }

  const std::string_view text_;
  size_t place_ = 0;
  size_t values_left_;
};

[[noreturn]] void wrong_kind(std::string_view what, const char* expected) {
  throw Error(shown(what) + " should be " + expected);
}

}  // namespace

const Json* Json::find(std::string_view field) const {
  if (kind != kObject) throw Error("an object with the field " + shown(field) + " was expected");
  const auto found = std::find(keys.begin(), keys.end(), field);
  return found == keys.end() ? nullptr : &items[static_cast<size_t>(found - keys.begin())];
}

const Json& Json::at(std::string_view field) const {
  const Json* found = find(field);
  if (!found) throw Error("the field " + shown(field) + " is missing");
  return *found;
}

const std::string& Json::string(std::string_view what) const {
  if (kind != kString) wrong_kind(what, "a text");
  return text;
}

int64_t Json::integer(std::string_view what) const {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (kind != kInteger || error != std::errc() || end != text.data() + text.size())
    wrong_kind(what, "a whole number of 64 bits");
  return value;
}

double Json::number(std::string_view what) const {
  if (kind != kInteger && kind != kReal) wrong_kind(what, "a finite number");
  // strtod wants the decimal point of the app's locale. A stream would bring a static library's whole locale code along, and
  // not every standard library has from_chars for doubles.
  std::string local = text;
  if (const size_t point = local.find('.'); point != std::string::npos)
    local.replace(point, 1, std::localeconv()->decimal_point);
  const double value = std::strtod(local.c_str(), nullptr);
  if (!std::isfinite(value)) wrong_kind(what, "a finite number");
  return value;
}

bool Json::boolean(std::string_view what) const {
  if (kind != kTrue && kind != kFalse) wrong_kind(what, "true or false");
  return kind == kTrue;
}

const Json& Json::array(std::string_view what) const {
  if (kind != kArray) wrong_kind(what, "a list");
  return *this;
}

const Json& Json::object(std::string_view what) const {
  if (kind != kObject) wrong_kind(what, "an object");
  return *this;
}

Json parse_json(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.bytes)
    throw Error(std::to_string(text.size()) + " bytes of JSON, " + std::to_string(limits.bytes) + " are allowed");
  try {
    return Reader(text, limits.values).document();
  } catch (const std::bad_alloc&) {
    throw Error("the JSON does not fit into memory", kMissing);
  }
}

std::string quoted(std::string_view text) {
  constexpr char hex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 32)
      (((out += "\\u00") += hex[c >> 4]) += hex[c & 15]);
    else
      out += c;
  }
  return out += '"';
}

std::string real_number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  std::string digits = text;
  std::replace(digits.begin(), digits.end(), ',', '.');  // the locale's decimal point
  return digits;
}

std::string shown(std::string_view text) {
  size_t end = std::min<size_t>(text.size(), 64);
  while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) end--;
  std::string out = quoted(text.substr(0, end));
  out.front() = out.back() = '\'';
  return out + (end < text.size() ? "..." : "");
}

}  // namespace edgeqkv
