#include "bpe.h"

#include <algorithm>
#include <queue>
#include <tuple>
#include <utility>

#include "error.h"
#include "utf8.h"

namespace edgeqkv {
namespace {

// GPT-2's characters for bytes: printable Latin-1 as it is, the other 68 from U+0100 on in their order.
struct ByteCharacters {
  std::array<std::string, 256> text;   // of a byte
  std::array<int16_t, 0x144> byte_of;  // of a code point; -1 where it stands for none

  ByteCharacters() {
    byte_of.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; byte++) {
      const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
      const char32_t code = printable ? static_cast<char32_t>(byte) : next++;
      append_utf8(code, text[static_cast<size_t>(byte)]);
      byte_of[code] = static_cast<int16_t>(byte);
    }
  }
};

const ByteCharacters& byte_characters() {
  static const ByteCharacters table;
  return table;
}

void refuse_unless_empty(const Json& model, std::string_view option) {
  const Json* value = model.find(option);
  if (value && !value->is_null() && !value->string(option).empty())
    throw Error("its model has a " + std::string(option) + ", which byte-level models have not");
}

bool flag(const Json& model, std::string_view option) {
  const Json* value = model.find(option);
  return value && !value->is_null() && value->boolean(option);
}

// "a b" or ["a", "b"].
std::pair<std::string, std::string> merge_parts(const Json& merge) {
  if (merge.kind == Json::kArray) {
    if (merge.items.size() != 2) throw Error("a merge should have two parts");
    return {merge.items[0].string("a merge's part"), merge.items[1].string("a merge's part")};
  }
  const std::string& line = merge.string("a merge");
  const size_t space = line.find(' ');
  if (space == line.npos || line.find(' ', space + 1) != line.npos) throw Error("a merge should have two parts");
  return {line.substr(0, space), line.substr(space + 1)};
}

}  // namespace

void append_token_bytes(std::string_view token, std::string& bytes) {
  const auto& byte_of = byte_characters().byte_of;
  const size_t before = bytes.size();
  for (size_t place = 0; place < token.size();) {
    const Utf8Char c = utf8_at(token, place);
    const int byte = c.code < byte_of.size() ? byte_of[c.code] : -1;
    if (byte < 0) {
      bytes.resize(before);
      bytes += token;
      return;
    }
    bytes += static_cast<char>(byte);
    place += c.bytes;
  }
}

Bpe::Bpe(const Json& model) {
  if (const Json* dropout = model.find("dropout"); dropout && !dropout->is_null())
    throw Error("its model drops merges at random ('dropout')");
  if (flag(model, "byte_fallback")) throw Error("its model falls back to bytes ('byte_fallback')");
  refuse_unless_empty(model, "continuing_subword_prefix");
  refuse_unless_empty(model, "end_of_word_suffix");
  fuse_unknown_ = flag(model, "fuse_unk");
  ignore_merges_ = flag(model, "ignore_merges");
  if (const Json* unknown = model.find("unk_token"); unknown && !unknown->is_null()) {
    unknown_ = unknown->string("unk_token");
    has_unknown_ = true;
  }
  read_vocabulary(model.at("vocab").object("vocab"));
  read_merges(model.at("merges").array("merges"));
  for (size_t byte = 0; byte < 256; byte++) byte_ids_[byte] = id_of(byte_characters().text[byte]);
}

void Bpe::read_vocabulary(const Json& vocabulary) {
  const size_t size = vocabulary.items.size();
  tokens_.resize(size);
  ids_.reserve(size);
  for (size_t i = 0; i < size; i++) {
    const int64_t id = vocabulary.items[i].integer("a token's id");
    if (id < 0 || id >= static_cast<int64_t>(size) || tokens_[static_cast<size_t>(id)])
      throw Error("the ids of its vocabulary do not run from 0 to " + std::to_string(size) + " - 1");
    tokens_[static_cast<size_t>(id)] = &ids_.emplace(vocabulary.keys[i], static_cast<int32_t>(id)).first->first;
  }
}

void Bpe::read_merges(const Json& merges) {
  merges_.reserve(merges.items.size());
  for (const Json& item : merges.items) {
    if (item.kind == Json::kString && item.text.compare(0, 8, "#version") == 0) continue;
    const auto [left, right] = merge_parts(item);
    const Merge merge{id_of(left), id_of(right), static_cast<int32_t>(merges_.size()), id_of(left + right)};
    if (merge.left < 0 || merge.right < 0 || merge.result < 0)
      throw Error("a merge has a part or a result that is not in the vocabulary");
    merges_.push_back(merge);
  }
  // The last of several for one pair counts.
  const auto key = [](const Merge& m) { return std::make_tuple(m.left, m.right, -m.rank); };
  std::sort(merges_.begin(), merges_.end(), [&](const Merge& a, const Merge& b) { return key(a) < key(b); });
  const auto same = [](const Merge& a, const Merge& b) { return a.left == b.left && a.right == b.right; };
  merges_.erase(std::unique(merges_.begin(), merges_.end(), same), merges_.end());
}

int32_t Bpe::id_of(std::string_view token) const {
  const auto found = ids_.find(std::string(token));
  return found == ids_.end() ? -1 : found->second;
}

const Bpe::Merge* Bpe::find_merge(int32_t left, int32_t right) const {
  const auto less = [](const Merge& m, std::pair<int32_t, int32_t> pair) { return std::make_pair(m.left, m.right) < pair; };
  const auto found = std::lower_bound(merges_.begin(), merges_.end(), std::make_pair(left, right), less);
  return found != merges_.end() && found->left == left && found->right == right ? &*found : nullptr;
}

// A token of the piece so far, in a doubly linked list by index.
struct Bpe::Symbol {
  static constexpr size_t kNone = static_cast<size_t>(-1);
  int32_t id;  // -1: merged into the one before
  size_t before, after;
};

std::vector<Bpe::Symbol> Bpe::symbols_of(std::string_view piece) const {
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  bool after_unknown = false;
  for (const char c : piece) {
    int32_t id = byte_ids_[static_cast<unsigned char>(c)];
    const bool unknown = id < 0;
    if (unknown) {
      if (!has_unknown_ || (fuse_unknown_ && after_unknown)) continue;
      id = id_of(unknown_);
      if (id < 0) throw Error("the tokenizer's vocabulary lacks a byte of the text, and its unknown token as well");
    }
    after_unknown = unknown;
    const size_t place = symbols.size();
    symbols.push_back({id, place ? place - 1 : Symbol::kNone, place + 1});
  }
  if (!symbols.empty()) symbols.back().after = Symbol::kNone;
  return symbols;
}

// The merge of the lowest rank first, the leftmost of those; n log n for n symbols.
void Bpe::merge(std::vector<Symbol>& symbols) const {
  struct Candidate {
    int32_t rank, result;
    size_t place;
    bool operator<(const Candidate& other) const {  // the queue's top is its greatest
      return std::tie(rank, place) > std::tie(other.rank, other.place);
    }
  };
  std::priority_queue<Candidate> queue;
  const auto consider = [&](size_t place) {
    if (place == Symbol::kNone || symbols[place].after == Symbol::kNone) return;
    if (const Merge* found = find_merge(symbols[place].id, symbols[symbols[place].after].id))
      queue.push({found->rank, found->result, place});
  };
  for (size_t place = 0; place < symbols.size(); place++) consider(place);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.place];
    if (left.id < 0 || left.after == Symbol::kNone) continue;
    Symbol& right = symbols[left.after];
    const Merge* found = find_merge(left.id, right.id);
    if (!found || found->result != best.result) continue;  // other merges have changed the two since
    left.id = best.result;
    left.after = right.after;
    right.id = -1;
    if (left.after != Symbol::kNone) symbols[left.after].before = best.place;
    consider(left.before);
    consider(best.place);
  }
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    std::string token;
    for (const char c : piece) token += byte_characters().text[static_cast<unsigned char>(c)];
    if (const int32_t id = id_of(token); id >= 0) {
      ids.push_back(id);
      return;
    }
  }
  std::vector<Symbol> symbols = symbols_of(piece);
  merge(symbols);
  for (const Symbol& symbol : symbols)
    if (symbol.id >= 0) ids.push_back(symbol.id);
}

}  // namespace edgeqkv
