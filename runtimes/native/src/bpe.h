// Byte-pair encoding (Sennrich et al., https://arxiv.org/abs/1508.07909) over bytes that are written as printable characters
// (GPT-2: a space is Ġ), which is how vocabularies of byte-level models are kept.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "json.h"

namespace edgeqkv {

// Appends the bytes that a token stands for; a token that is not written in byte characters stands for itself.
void append_token_bytes(std::string_view token, std::string& bytes);

class Bpe {
 public:
  // From the "model" of a tokenizer.json. Throws Error with what is wrong or not supported in it.
  explicit Bpe(const Json& model);
  Bpe(const Bpe&) = delete;  // tokens_ points into ids_
  Bpe& operator=(const Bpe&) = delete;

  // Appends the ids of one piece of text. Throws Error on a byte that the vocabulary lacks where it names an unknown token that
  // it lacks as well; without an unknown token such a byte is left out.
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;

  // Ids run from 0 to size() - 1.
  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }
  std::string_view token(int32_t id) const { return *tokens_[static_cast<size_t>(id)]; }
  int32_t id_of(std::string_view token) const;  // -1 where there is none

 private:
  struct Merge {
    int32_t left, right;
    int32_t rank, result;
  };
  struct Symbol;

  void read_vocabulary(const Json& vocabulary);
  void read_merges(const Json& merges);
  const Merge* find_merge(int32_t left, int32_t right) const;
  std::vector<Symbol> symbols_of(std::string_view piece) const;
  void merge(std::vector<Symbol>& symbols) const;

  std::unordered_map<std::string, int32_t> ids_;
  std::vector<const std::string*> tokens_;  // by id
  std::vector<Merge> merges_;               // by left and right
  std::array<int32_t, 256> byte_ids_;       // -1 where the vocabulary lacks a byte
  std::string unknown_;                     // the token for those, or empty
  bool has_unknown_ = false;
  bool fuse_unknown_ = false;   // several in a row are one
  bool ignore_merges_ = false;  // a piece that is a token is that token, whatever the merges make of it
};

}  // namespace edgeqkv
