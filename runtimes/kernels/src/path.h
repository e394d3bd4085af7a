// What one instruction set provides, and the work items that the driver hands to it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "edgeqkv_attention.h"
#include "edgeqkv_head_linear.h"

namespace edgeqkv {

constexpr int kMaxRow = 2048;  // channels of a cached row

// Query rows of one item. Row r of a KV head is token r / group, head r % group of that KV head's group.
constexpr int kBlockRows = 32;

// Query rows [row0, row0 + n_row) of one KV head against cached positions [key0, key1), each row up to its own position.
// The result is the online-softmax state of each row, before the division by `sum`.
struct Item {
  int kv_head, row0, n_row, key0, key1;
  float* max;      // [n_row]           largest score, in units of log2; kNoScore if the row saw no position
  float* sum;      // [n_row]           sum of 2^(score - max)
  float* acc;      // [n_row, value_dim] sum of 2^(score - max) * value
  float* scratch;  // scratch_floats(a) floats, 64-byte aligned
};

constexpr float kNoScore = -3.402823466e38f;  // finite, so that kNoScore - kNoScore is 0 and not NaN

struct Path {
  void (*append)(const edgeqkv_attention_args& a, int kv_head);  // all n_token rows of one KV head
  void (*attend)(const edgeqkv_attention_args& a, const Item& item);
  size_t (*scratch_floats)(const edgeqkv_attention_args& a);
  void (*head_linear)(const edgeqkv_head_linear_args& a, int head, int begin, int end,
                      float* scratch);  // outputs begin .. end - 1
  size_t (*head_linear_floats)(const edgeqkv_head_linear_args& a);
  float float_product;  // of many query rows: what a product of floats takes, in those with int8
};

// AUTO to the best path here, any other value to itself, or -1 if it cannot run here.
int resolve_isa(int isa);

const Path* path_of(int isa);  // null for what this build has no path for

extern const Path kScalarPath;
#if defined(EDGEQKV_X86)
extern const Path kAvx2Path, kAvxVnniPath, kAvx512Path;
#elif defined(EDGEQKV_ARM64)
extern const Path kNeonPath, kNeonDotPath, kNeonI8mmPath;
#endif

}  // namespace edgeqkv
