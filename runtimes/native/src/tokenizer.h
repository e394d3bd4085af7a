// Text to token ids and back, from a tokenizer.json of Hugging Face's tokenizers package: byte-level BPE with the splits of
// GPT-2, Llama 3 and Qwen 2 and 3. Ids and texts are the package's (0.23): test_tokenizer.py holds them against it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "added_tokens.h"
#include "bpe.h"
#include "pretokenizer.h"

namespace edgeqkv {

class Tokenizer {
 public:
  // `json` is the file's content, 64 MiB at most. Throws Error with what is wrong in it, or with what it holds that is not
  // known here; a model is then driven by token ids.
  static std::unique_ptr<Tokenizer> parse(std::string_view json);

  // The const functions may be called by several threads at once.

  // The ids of a text of valid UTF-8; Error names the first byte of a text that is not. With `add_special`, also the tokens
  // that the file puts around a text (Llama 3: <|begin_of_text|> before it).
  std::vector<int32_t> encode(std::string_view text, bool add_special) const;

  // The text of ids. Bytes that are no UTF-8 become U+FFFD. Ids that the tokenizer does not know (a model's vocabulary may be
  // padded) are left out, and so are special tokens with `skip_special`.
  std::string decode(const std::vector<int32_t>& ids, bool skip_special) const;

  // Ids run from 0 to size() - 1.
  int64_t size() const { return size_; }
  std::optional<int32_t> id_of(std::string_view token) const;

 private:
  friend class DecodeStream;

  static constexpr int32_t kText = -1;

  explicit Tokenizer(const Json& file);
  void read_pretokenizer(const Json& pretokenizer);
  void read_added_tokens(const Json& tokens);
  void read_postprocessor(const Json& processor);
  void encode_words(std::string_view text, std::vector<int32_t>& ids) const;
  bool is_special(const AddedToken& token) const;
  void append_bytes(int32_t id, bool skip_special, std::string& bytes) const;

  Bpe bpe_;
  bool normalize_ = false;  // to form C
  bool prefix_space_ = false;
  Splitter splitter_ = Splitter::kGpt2;
  std::map<int32_t, AddedToken> added_;
  std::unordered_map<std::string_view, int32_t> added_ids_;  // by their content in added_
  AddedTokenFinder verbatim_, normalized_;                   // searched for before and after normalization
  std::vector<int32_t> template_ = {kText};  // what encode() gives: ids of special tokens, and kText where the text's go
  bool has_template_ = false;
  int32_t size_ = 0;
};

// The text of ids as they come. A character that is spread over several ids comes out when it is whole: all that push()
// returned, and then flush(), is decode() of the ids.
class DecodeStream {
 public:
  // The tokenizer outlives the stream. To go on after a prompt, push its ids first.
  DecodeStream(const Tokenizer& tokenizer, bool skip_special) : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  std::string push(int32_t id);
  std::string flush();  // U+FFFD where a character is still incomplete, or nothing; the stream starts anew

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string held_;  // the beginning of a character
};

}  // namespace edgeqkv
