// JSON (RFC 8259), read strictly and written, so that the library builds on a board with nothing but a compiler. The reader refuses
// what Python's reader of bundles refuses: a key that stands twice, bytes that are no UTF-8, halves of surrogate pairs (raw or
// escaped), 64.0 where a whole number is meant.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "limits.h"

namespace edgeqkv {

struct Json {
  enum Kind : unsigned char { kNull, kFalse, kTrue, kInteger, kReal, kString, kArray, kObject } kind = kNull;
  std::string text;               // of a string, unescaped UTF-8; of a number, its digits as they stand in the file
  std::vector<Json> items;        // of an array, or the values of an object
  std::vector<std::string> keys;  // of an object, in the order of the file: items[i] is the value of keys[i]

  // The value of a field, nullptr where there is none; Error where this is no object. Linear in the number of fields.
  const Json* find(std::string_view field) const;
  // The same; Error names a field that is missing.
  const Json& at(std::string_view field) const;

  // The value as a C++ type. Error where it is of another kind; `what` is its name in the sentence.
  const std::string& string(std::string_view what) const;
  int64_t integer(std::string_view what) const;  // no fraction, no exponent, within 64 bits
  double number(std::string_view what) const;    // finite
  bool boolean(std::string_view what) const;
  const Json& array(std::string_view what) const;
  const Json& object(std::string_view what) const;

  bool is_null() const { return kind == kNull; }
};

// What a text may cost at most. A value takes about a hundred bytes of memory; values are nested 64 deep at most.
struct JsonLimits {
  size_t bytes = size_t(kMostJsonBytes);
  size_t values = size_t{4} << 20;
};

// Throws Error, with the byte where the text stops being JSON, or with what limit it passes; and nothing else.
Json parse_json(std::string_view text, const JsonLimits& limits = {});

// UTF-8 text as a JSON string, quotes included.
std::string quoted(std::string_view text);

// A finite number with nine digits; null where it is not finite, which JSON cannot say.
std::string real_number(double value);

template <class T>
std::string json(const T& value);
template <class T>
std::string json(const std::optional<T>& value) {
  return value ? json(*value) : "null";
}

// An object that is being written, field by field.
class JsonObject {
 public:
  template <class T>
  JsonObject& add(std::string_view key, const T& value) {
    fields_ += (fields_.empty() ? "" : ", ") + quoted(key) + ": " + json(value);
    return *this;
  }
  std::string text() const { return "{" + fields_ + "}"; }

 private:
  std::string fields_;
};

// A value as JSON: a truth value, a number, a text, a JsonObject, or a list of these; an optional one that is not there is null.
template <class T>
std::string json(const T& value) {
  if constexpr (std::is_same_v<T, bool>)
    return value ? "true" : "false";
  else if constexpr (std::is_integral_v<T>)
    return std::to_string(value);
  else if constexpr (std::is_floating_point_v<T>)
    return real_number(value);
  else if constexpr (std::is_convertible_v<T, std::string_view>)
    return quoted(value);
  else if constexpr (std::is_same_v<T, JsonObject>)
    return value.text();
  else {
    std::string items;
    for (const auto& item : value) items += (items.empty() ? "" : ", ") + json(item);
    return "[" + items + "]";
  }
}

// A text of a file as it may stand in an error: in single quotes, on one line, and 64 bytes of it at most.
std::string shown(std::string_view text);

}  // namespace edgeqkv
