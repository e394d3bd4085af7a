#include "tokenizer.h"

#include <algorithm>
#include <utility>

#include "error.h"
#include "json.h"
#include "unicode.h"
#include "utf8.h"

namespace edgeqkv {
namespace {

// A field's value; nullptr where it is missing or null.
const Json* find_value(const Json& object, std::string_view field) {
  const Json* found = object.find(field);
  return found && !found->is_null() ? found : nullptr;
}

bool flag(const Json& object, std::string_view field, bool otherwise) {
  const Json* found = find_value(object, field);
  return found ? found->boolean(field) : otherwise;
}

std::string type_of(const Json& part) { return part.at("type").string("type"); }

const Json& model_of(const Json& file) {
  const Json& model = file.at("model").object("model");
  const Json* type = model.find("type");  // files of early versions have none
  if (type && type->string("type") != "BPE")
    throw Error("its model is " + shown(type->text) + ", only byte-level BPE is known");
  return model;
}

// Moves whole characters from bytes to text; with `at_end`, incomplete ones as well.
void move_characters(std::string& bytes, bool at_end, std::string& text) {
  size_t place = 0;
  while (place < bytes.size()) {
    const Utf8Char c = utf8_at(bytes, place);
    if (c.state == Utf8Char::kCut && !at_end) break;
    append_utf8(c.code, text);
    place += c.bytes;
  }
  bytes.erase(0, place);
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::parse(std::string_view json) {
  try {
    return std::unique_ptr<Tokenizer>(new Tokenizer(parse_json(json).object("the file")));
  } catch (const Error& error) {
    throw Error(std::string("this tokenizer cannot be used (token ids can): ") + error.what(), error.kind);
  }
}

Tokenizer::Tokenizer(const Json& file) : bpe_(model_of(file)) {
  if (const Json* version = find_value(file, "version"); version && version->string("version") != "1.0")
    throw Error("its format is version " + shown(version->text) + ", only 1.0 is known");
  for (const char* option : {"truncation", "padding"})
    if (find_value(file, option)) throw Error(std::string("it asks for ") + option);
  if (const Json* normalizer = find_value(file, "normalizer")) {
    if (type_of(*normalizer) != "NFC") throw Error("its normalizer is " + shown(type_of(*normalizer)) + ", only NFC is known");
    normalize_ = true;
  }
  const Json* pretokenizer = find_value(file, "pre_tokenizer");
  if (!pretokenizer) throw Error("it has no pre_tokenizer, so that it is not byte-level");
  read_pretokenizer(*pretokenizer);
  const Json* decoder = find_value(file, "decoder");
  if (!decoder || type_of(*decoder) != "ByteLevel")
    throw Error("its decoder is " + (decoder ? shown(type_of(*decoder)) : "missing") + ", only ByteLevel is known");
  if (const Json* tokens = find_value(file, "added_tokens")) read_added_tokens(tokens->array("added_tokens"));
  size_ = std::max(bpe_.size(), added_.empty() ? 0 : added_.rbegin()->first + 1);
  if (const Json* processor = find_value(file, "post_processor")) read_postprocessor(*processor);
}

void Tokenizer::read_pretokenizer(const Json& pretokenizer) {
  const std::string type = type_of(pretokenizer);
  if (type == "ByteLevel") {
    if (!flag(pretokenizer, "use_regex", true)) throw Error("its pre_tokenizer ByteLevel does not split (use_regex is false)");
    prefix_space_ = flag(pretokenizer, "add_prefix_space", true);
    return;
  }
  if (type != "Sequence")
    throw Error("its pre_tokenizer is " + shown(type) + ", only ByteLevel, alone or after Split, is known");
  const std::vector<Json>& parts = pretokenizer.at("pretokenizers").array("pretokenizers").items;
  if (parts.size() != 2 || type_of(parts[0]) != "Split" || type_of(parts[1]) != "ByteLevel")
    throw Error("its pre_tokenizer is a sequence of other parts than Split and ByteLevel");
  const Json& split = parts[0];
  const Json* regex = find_value(split.at("pattern"), "Regex");
  const std::optional<Splitter> known = regex ? splitter_of(regex->string("Regex")) : std::nullopt;
  if (!known)
    throw Error("it splits by another pattern than GPT-2's, Llama 3's and Qwen 2's: " +
                (regex ? shown(regex->text) : "a plain text"));
  if (split.at("behavior").string("behavior") != "Isolated" || flag(split, "invert", false))
    throw Error("its Split is not plain (behavior Isolated, invert false)");
  if (flag(parts[1], "use_regex", true) || flag(parts[1], "add_prefix_space", true))
    throw Error("its ByteLevel after Split splits again or adds spaces");
  splitter_ = *known;
}

// As in the package, the ids of the list do not count: a token keeps its id in the vocabulary, others go on behind it.
void Tokenizer::read_added_tokens(const Json& tokens) {
  int32_t next = bpe_.size();
  for (const Json& item : tokens.items) {
    const std::string& content = item.at("content").string("content");
    if (content.empty()) continue;
    if (added_ids_.count(content)) throw Error("an added token stands twice: " + shown(content));
    const int32_t known = bpe_.id_of(content);
    AddedToken token;
    token.id = known < 0 ? next++ : known;
    token.content = content;
    token.special = item.at("special").boolean("special");
    token.normalized = item.at("normalized").boolean("normalized");
    token.single_word = item.at("single_word").boolean("single_word");
    token.lstrip = item.at("lstrip").boolean("lstrip");
    token.rstrip = item.at("rstrip").boolean("rstrip");
    token.text = normalize_ && token.normalized ? nfc(content) : content;
    const AddedToken& kept = added_[token.id] = std::move(token);
    added_ids_.emplace(kept.content, kept.id);
  }
  std::vector<const AddedToken*> verbatim, normalized;
  for (const auto& [id, token] : added_) (token.normalized ? normalized : verbatim).push_back(&token);
  verbatim_ = AddedTokenFinder(std::move(verbatim));
  normalized_ = AddedTokenFinder(std::move(normalized));
}

void Tokenizer::read_postprocessor(const Json& processor) {
  const std::string type = type_of(processor);
  if (type == "ByteLevel") return;  // it changes offsets only
  if (type == "Sequence") {
    for (const Json& part : processor.at("processors").array("processors").items) read_postprocessor(part);
    return;
  }
  if (type != "TemplateProcessing")
    throw Error("its post_processor is " + shown(type) + ", only ByteLevel and TemplateProcessing are known");
  if (has_template_) throw Error("it has several templates");
  has_template_ = true;
  template_.clear();
  for (const Json& piece : processor.at("single").array("single").items) {
    if (const Json* sequence = piece.find("Sequence")) {
      if (sequence->at("id").string("id") != "A") throw Error("its template for one text names a second");
      template_.push_back(kText);
      continue;
    }
    const std::string& name = piece.at("SpecialToken").at("id").string("id");
    for (const Json& item : processor.at("special_tokens").at(name).at("ids").array("ids").items) {
      const int64_t id = item.integer("the id of a special token");
      if (id < 0 || id >= size_)
        throw Error("its template has the id " + item.text + ", it knows 0 to " + std::to_string(size_ - 1));
      template_.push_back(static_cast<int32_t>(id));
    }
  }
}

void Tokenizer::encode_words(std::string_view text, std::vector<int32_t>& ids) const {
  std::string prefixed;
  if (prefix_space_ && text.front() != ' ') text = prefixed = " " + std::string(text);
  for (size_t start = 0; start < text.size();) {
    const size_t end = piece_end(splitter_, text, start);
    bpe_.encode(text.substr(start, end - start), ids);
    start = end;
  }
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special) const {
  for (size_t place = 0; place < text.size();) {
    const Utf8Char c = utf8_at(text, place);
    if (c.state != Utf8Char::kWhole) throw Error("the text is no UTF-8 from byte " + std::to_string(place));
    place += c.bytes;
  }
  std::vector<int32_t> ids;
  for (const Section& outer : verbatim_.split(text)) {
    if (outer.token) {
      ids.push_back(outer.token->id);
      continue;
    }
    const std::string normal = normalize_ ? nfc(outer.text) : std::string(outer.text);
    for (const Section& inner : normalized_.split(normal)) {
      if (inner.token)
        ids.push_back(inner.token->id);
      else
        encode_words(inner.text, ids);
    }
  }
  std::vector<int32_t> all;
  for (const int32_t piece : template_) {
    if (piece == kText)
      all.insert(all.end(), ids.begin(), ids.end());
    else if (add_special)
      all.push_back(piece);
  }
  return all;
}

// As in the package, a token is special by its text: one that normalization changes is none when it is decoded.
bool Tokenizer::is_special(const AddedToken& token) const {
  const auto found = added_ids_.find(token.text);
  return found != added_ids_.end() && added_.at(found->second).special;
}

void Tokenizer::append_bytes(int32_t id, bool skip_special, std::string& bytes) const {
  const auto found = added_.find(id);
  if (found == added_.end()) {
    if (id >= 0 && id < bpe_.size()) append_token_bytes(bpe_.token(id), bytes);
  } else if (!(skip_special && is_special(found->second))) {
    append_token_bytes(found->second.text, bytes);
  }
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids, bool skip_special) const {
  std::string bytes, text;
  for (const int32_t id : ids) append_bytes(id, skip_special, bytes);
  move_characters(bytes, true, text);
  return text;
}

std::optional<int32_t> Tokenizer::id_of(std::string_view token) const {
  if (const auto added = added_ids_.find(token); added != added_ids_.end()) return added->second;
  const int32_t id = bpe_.id_of(token);
  return id < 0 ? std::nullopt : std::optional<int32_t>(id);
}

std::string DecodeStream::push(int32_t id) {
  std::string text;
  tokenizer_->append_bytes(id, skip_special_, held_);
  move_characters(held_, false, text);
  return text;
}

std::string DecodeStream::flush() {
  std::string text;
  move_characters(held_, true, text);
  return text;
}

}  // namespace edgeqkv
