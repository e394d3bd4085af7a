// A JSON reader of one page, so that the runner builds on a board with nothing but a compiler. It reads what edgeqkv writes:
// numbers are doubles (the manifest's integers are below 2^53).
#pragma once

#include <map>
#include <string>
#include <vector>

namespace edgeqkv {

struct Json {
  enum Kind { kNull, kBool, kNumber, kString, kArray, kObject } kind = kNull;
  double number = 0;  // and 0 or 1 for a boolean
  std::string text;
  std::vector<Json> items;
  std::map<std::string, Json> fields;
  std::vector<std::string> keys;  // of the fields, in the order of the file

  // Each throws Error when the value is of another kind or the field is missing; `at` names it in the sentence.
  const Json& at(const std::string& name) const;
  bool has(const std::string& name) const { return fields.count(name) != 0; }
  const std::string& string() const;
  int64_t integer() const;
  const std::vector<Json>& array() const;
};

// Throws Error with the byte where the text stops being JSON.
Json parse_json(const std::string& text);

// A string as JSON, quotes included.
std::string quoted(const std::string& text);

}  // namespace edgeqkv
