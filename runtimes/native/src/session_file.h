// A session as a file: docs/session-file.md has the format.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine.h"
#include "file.h"
#include "manifest.h"

namespace edgeqkv {

// `logits` is vocab_size of them, or nullptr.
void write_session_file(const std::string& path, const Manifest& manifest, const Artifact& artifact, Context& context,
                        const std::vector<int64_t>& tokens, const float* logits);

// A file that was checked in full.
struct SessionFile {
  std::vector<int64_t> tokens;
  std::vector<float> logits;  // empty where it has none

  // Writes the filled rows into a context of the artifact that the file was read for.
  void copy_rows(const Artifact& artifact, Context& context) const;

  Bytes bytes;
  std::vector<size_t> places;  // of each of the artifact's buffers in `bytes`
};

SessionFile read_session_file(const std::string& path, const Manifest& manifest, const Artifact& artifact);

}  // namespace edgeqkv
