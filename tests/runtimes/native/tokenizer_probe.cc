// The library's tokenizer and JSON reader behind pipes, for tests/native_probe.py. A request is a letter, the length of its
// body (32 bits, little-endian) and the body; the answer is '+' and a body, or '-' and the sentence of an error, with their
// length.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "error.h"
#include "json.h"
#include "pretokenizer.h"
#include "tokenizer.h"
#include "unicode.h"

namespace {

using edgeqkv::DecodeStream;
using edgeqkv::Json;
using edgeqkv::Tokenizer;

std::string bytes_of(const std::vector<int32_t>& ids) {
  return std::string(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t));
}

std::vector<int32_t> ids_of(const std::string& body) {
  std::vector<int32_t> ids(body.size() / sizeof(int32_t));
  if (!ids.empty()) std::memcpy(ids.data(), body.data(), body.size());
  return ids;
}

// Each piece with its length before it.
std::string framed(const std::vector<std::string>& pieces) {
  std::string out;
  for (const std::string& piece : pieces) out += bytes_of({static_cast<int32_t>(piece.size())}) + piece;
  return out;
}

std::vector<std::string> streamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip_special) {
  DecodeStream stream(tokenizer, skip_special);
  std::vector<std::string> pieces;
  for (const int32_t id : ids) pieces.push_back(stream.push(id));
  pieces.push_back(stream.flush());
  return pieces;
}

// Where the pieces of a text end. The body is a regular expression, a zero and the text.
std::vector<int32_t> ends_of(const std::string& body) {
  const size_t zero = body.find('\0');
  const auto splitter = edgeqkv::splitter_of(body.substr(0, zero));
  if (!splitter) throw edgeqkv::Error("no such splitter");
  const std::string_view text = std::string_view(body).substr(zero + 1);
  std::vector<int32_t> ends;
  for (size_t end = 0; end < text.size();) ends.push_back(static_cast<int32_t>(end = piece_end(*splitter, text, end)));
  return ends;
}

// What was read, as JSON again.
std::string written(const Json& value) {
  switch (value.kind) {
    case Json::kNull: return "null";
    case Json::kFalse: return "false";
    case Json::kTrue: return "true";
    case Json::kInteger:
    case Json::kReal: return value.text;
    case Json::kString: return edgeqkv::quoted(value.text);
    default: break;
  }
  std::string out;
  for (size_t i = 0; i < value.items.size(); i++) {
    out += i ? ", " : "";
    if (value.kind == Json::kObject) out += edgeqkv::quoted(value.keys[i]) + ": ";
    out += written(value.items[i]);
  }
  return value.kind == Json::kObject ? "{" + out + "}" : "[" + out + "]";
}

std::unique_ptr<Tokenizer> tokenizer;

std::string answer(char request, const std::string& body) {
  switch (request) {
    case 'J': return written(edgeqkv::parse_json(body, {1 << 26, 1 << 16}));
    case 'i': return std::to_string(edgeqkv::parse_json(body).integer("the number"));
    case 'r': return std::to_string(edgeqkv::parse_json(body).number("the number"));
    case 'N': return edgeqkv::nfc(body);
    case 'P': return bytes_of(ends_of(body));
    case 'T': tokenizer = Tokenizer::parse(body); return std::to_string(tokenizer->size());
    case 'E': return bytes_of(tokenizer->encode(body, true));
    case 'e': return bytes_of(tokenizer->encode(body, false));
    case 'D': return tokenizer->decode(ids_of(body), true);
    case 'd': return tokenizer->decode(ids_of(body), false);
    case 'S': return framed(streamed(*tokenizer, ids_of(body), true));
    case 's': return framed(streamed(*tokenizer, ids_of(body), false));
    case 'I': return std::to_string(tokenizer->id_of(body).value_or(-1));
    default: throw edgeqkv::Error(std::string("no such request: ") + request);
  }
}

void reply(char status, const std::string& body) {
  const std::string head = status + bytes_of({static_cast<int32_t>(body.size())});
  std::fwrite(head.data(), 1, head.size(), stdout);
  std::fwrite(body.data(), 1, body.size(), stdout);
  std::fflush(stdout);
}

}  // namespace

int main() {
  int request;
  while ((request = std::getchar()) != EOF) {
    uint32_t size = 0;
    if (std::fread(&size, sizeof size, 1, stdin) != 1) return 1;
    std::string body(size, '\0');
    if (std::fread(body.data(), 1, size, stdin) != size) return 1;
    try {
      reply('+', answer(static_cast<char>(request), body));
    } catch (const edgeqkv::Error& error) {
      reply('-', error.what());
    }
  }
  return 0;
}
