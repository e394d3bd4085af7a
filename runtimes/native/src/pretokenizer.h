// Where text is split before byte-pair encoding: three regular expressions, as functions over code points. They split as the
// tokenizers package's regex engine does: the first alternative that matches at a place wins, and no text is left over.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace edgeqkv {

enum class Splitter {
  kGpt2,
  kLlama3,
  kQwen2,  // and Qwen 3
};

// The splitter that is written as this regular expression; nothing for any other text.
std::optional<Splitter> splitter_of(std::string_view regex);

// The end of the piece that starts at text[start], start < text.size(). The text is valid UTF-8.
size_t piece_end(Splitter splitter, std::string_view text, size_t start);

}  // namespace edgeqkv
