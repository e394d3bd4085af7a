// Decodes a number of tokens with one layer's attention and nothing else, to be run under an instruction counter.
//
//   decode_once PATH k|kv KV_HEADS fp32|int8 DEPTH TOKENS
//
// 16 query heads of 64. Every token is decoded at the same depth, so that the difference of two runs divided by the difference of
// their tokens is what a token costs; setting up costs the same in both.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "edgeqkv_attention.h"

int main(int argc, char** argv) {
  if (argc != 7) {
    std::fprintf(stderr, "usage: %s PATH k|kv KV_HEADS fp32|int8 DEPTH TOKENS\n", argv[0]);
    return 2;
  }
  constexpr int kHeads = 16, kDim = 64;
  edgeqkv_attention_args a = {};
  a.size = sizeof a;
  a.n_head = kHeads, a.n_kv_head = std::atoi(argv[3]), a.row_dim = a.key_dim = a.value_dim = kDim, a.n_token = 1;
  a.position = std::atoi(argv[5]), a.capacity = a.position + 1;
  a.dtype = std::strcmp(argv[4], "int8") ? EDGEQKV_FP32 : EDGEQKV_INT8;
  a.isa = -1;
  for (int isa = EDGEQKV_ISA_SCALAR; isa < EDGEQKV_ISA_COUNT; isa++)
    if (!std::strcmp(argv[1], edgeqkv_attention_isa_name(isa))) a.isa = isa;

  size_t rows = size_t(a.n_kv_head) * size_t(a.capacity), n = rows * kDim;
  std::vector<float> q(kHeads * kDim), out(kHeads * kDim), k(size_t(a.n_kv_head) * kDim), scale(rows, 0.02f);
  for (size_t i = 0; i < q.size(); i++) q[i] = float(int(i * 37 % 41) - 20) / 20;
  for (size_t i = 0; i < k.size(); i++) k[i] = float(int(i * 53 % 47) - 23) / 23;
  std::vector<uint8_t> cache(n * (a.dtype == EDGEQKV_INT8 ? 1 : 4));
  for (size_t i = 0; i < n; i++) {
    int x = int(i * 29 % 101) - 50;
    float y = float(x) / 50;
    if (a.dtype == EDGEQKV_INT8) cache[i] = uint8_t(int8_t(x));
    if (a.dtype == EDGEQKV_FP32) std::memcpy(&cache[i * 4], &y, 4);
  }
  std::vector<uint8_t> v_cache = cache;
  std::vector<float> v_scale = scale;
  a.q = q.data(), a.k = k.data(), a.out = out.data(), a.k_cache = cache.data(), a.k_scale = scale.data();
  if (!std::strcmp(argv[2], "kv")) a.v = k.data(), a.v_cache = v_cache.data(), a.v_scale = v_scale.data();
  for (int token = 0; token < std::atoi(argv[6]); token++)
    if (int error = edgeqkv_attention(&a, nullptr, nullptr, 0)) {
      std::fprintf(stderr, "error %d\n", error);
      return 1;
    }
  return 0;
}
