// Tokens that are found in a text before it is split and encoded: special ones (<|endoftext|>) and words added later.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace edgeqkv {

struct AddedToken {
  int32_t id;
  std::string content;
  std::string text;  // what is searched for, and what the id stands for: the content, normalized where the token is
  bool special;      // left out of decoded text where the caller wants so
  bool normalized;   // searched for in the normalized text
  bool single_word;  // only where no letter, digit or other word character touches it
  bool lstrip;       // the space before it belongs to it
  bool rstrip;       // and the space after it
};

// A part of a text: an added token, or the text between two.
struct Section {
  const AddedToken* token;
  std::string_view text;  // where token is nullptr
};

// Finds tokens from left to right, the longest at each place, as the tokenizers package does.
class AddedTokenFinder {
 public:
  // The tokens outlive the finder. Throws Error when two have the same text.
  explicit AddedTokenFinder(std::vector<const AddedToken*> tokens = {});

  // `text` is valid UTF-8.
  std::vector<Section> split(std::string_view text) const;

 private:
  const AddedToken* longest_at(std::string_view text, size_t place) const;

  std::vector<const AddedToken*> tokens_;  // by their text
};

}  // namespace edgeqkv
