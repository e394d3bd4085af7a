#include "added_tokens.h"

#include <algorithm>
#include <utility>

#include "error.h"
#include "unicode.h"
#include "utf8.h"

namespace edgeqkv {
namespace {

// The last character that ends at `end` > 0 starts here.
size_t char_before(std::string_view text, size_t end) {
  do end--;
  while ((static_cast<unsigned char>(text[end]) & 0xc0) == 0x80);
  return end;
}

bool is_single_word(std::string_view text, size_t start, size_t stop) {
  return (start == 0 || !is_word(utf8_at(text, char_before(text, start)).code)) &&
         (stop == text.size() || !is_word(utf8_at(text, stop).code));
}

size_t without_space_before(std::string_view text, size_t start) {
  while (start > 0 && is_space(utf8_at(text, char_before(text, start)).code)) start = char_before(text, start);
  return start;
}

size_t with_space_after(std::string_view text, size_t stop) {
  while (stop < text.size() && is_space(utf8_at(text, stop).code)) stop += utf8_at(text, stop).bytes;
  return stop;
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<const AddedToken*> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end(), [](const AddedToken* a, const AddedToken* b) { return a->text < b->text; });
  const auto twin = std::adjacent_find(tokens_.begin(), tokens_.end(),
                                       [](const AddedToken* a, const AddedToken* b) { return a->text == b->text; });
  if (twin != tokens_.end()) throw Error("two added tokens of the tokenizer stand for the same text");
}

// Byte by byte, the tokens that begin with the text from here on become fewer.
const AddedToken* AddedTokenFinder::longest_at(std::string_view text, size_t place) const {
  const AddedToken* longest = nullptr;
  auto from = tokens_.begin(), to = tokens_.end();
  for (size_t depth = 0; from != to && place + depth < text.size(); depth++) {
    const auto byte = [depth](const AddedToken* token) { return static_cast<unsigned char>(token->text[depth]); };
    const unsigned char wanted = static_cast<unsigned char>(text[place + depth]);
    from = std::partition_point(from, to, [&](const AddedToken* token) { return byte(token) < wanted; });
    to = std::partition_point(from, to, [&](const AddedToken* token) { return byte(token) == wanted; });
    if (from != to && (*from)->text.size() == depth + 1) longest = *from++;
  }
  return longest;
}

std::vector<Section> AddedTokenFinder::split(std::string_view text) const {
  std::vector<Section> sections;
  size_t done = 0;  // the end of the last section
  for (size_t place = 0; !tokens_.empty() && place < text.size();) {
    const AddedToken* token = longest_at(text, place);
    if (!token) {
      place++;
      continue;
    }
    size_t start = place, stop = place + token->text.size();
    place = stop;  // the search goes on behind the token's own text, also where it took space with it or was none
    if (token->single_word && !is_single_word(text, start, stop)) continue;
    if (token->lstrip) start = std::max(done, without_space_before(text, start));
    if (token->rstrip) stop = with_space_after(text, stop);
    if (done < start) sections.push_back({nullptr, text.substr(done, start - done)});
    if (start < stop) sections.push_back({token, {}});  // else it was all space, and the token before took it
    done = stop;
  }
  if (done < text.size()) sections.push_back({nullptr, text.substr(done)});
  return sections;
}

}  // namespace edgeqkv
