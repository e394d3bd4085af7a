// Attention in its two steps, for a caller that has other work between them.
#pragma once

#include "path.h"
#include "task.h"

namespace edgeqkv {

// Checks the arguments, fills in the scale's default and chooses the path. Returns what edgeqkv_attention returns.
int32_t prepare(edgeqkv_attention_args& a, const Path** path);

// Of arguments that prepare has seen.
void append_rows(const edgeqkv_attention_args& a, const Path& path, const Parallel& parallel);
int32_t attend_rows(const edgeqkv_attention_args& a, const Path& path, const Parallel& parallel);

}  // namespace edgeqkv
