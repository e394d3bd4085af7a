// Latent attention (MLA) of 16 heads over rows of 512 + 64 in int8, one layer, one thread: the two forms that a prompt can be read in
// over the same latent cache, interleaved in one run, and which of them the library takes.
//
//   latent_bench [path]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "edgeqkv_latent_attention.h"

namespace {

constexpr int kHeads = 16, kLatent = 512, kRope = 64, kNope = 128, kValue = 128, kRow = kLatent + kRope;

std::mt19937 random_bits(1);

std::vector<float> normal(size_t n) {
  std::normal_distribution<float> of;
  std::vector<float> x(n);
  for (float& y : x) y = of(random_bits);
  return x;
}

std::vector<int8_t> bytes(size_t n) {
  std::uniform_int_distribution<int> of(-127, 127);
  std::vector<int8_t> x(n);
  for (int8_t& y : x) y = int8_t(of(random_bits));
  return x;
}

struct Case {
  int depth, n_token;
  std::vector<float> q_nope, q_rope, row, cache_scale, matrix_scale, out;
  std::vector<int8_t> w_k, w_v, cache;
  std::vector<double> ms[2];  // of each form

  Case(int depth_, int n_token_)
      : depth(depth_),
        n_token(n_token_),
        q_nope(normal(size_t(n_token) * kHeads * kNope)),
        q_rope(normal(size_t(n_token) * kHeads * kRope)),
        row(normal(size_t(n_token) * kRow)),
        cache_scale(size_t(depth + n_token) * 2, 0.01f),
        matrix_scale(size_t(kHeads) * kLatent, 1e-3f),
        out(size_t(n_token) * kHeads * kValue),
        w_k(bytes(size_t(kHeads) * kNope * kLatent)),
        w_v(bytes(size_t(kHeads) * kValue * kLatent)),
        cache(bytes(size_t(depth + n_token) * kRow)) {}

  edgeqkv_latent_attention_args args(int isa, int form) {
    edgeqkv_latent_attention_args a = {};
    a.size = sizeof a, a.n_head = kHeads, a.nope_dim = kNope, a.rope_dim = kRope, a.latent_dim = a.scale_split = kLatent;
    a.value_dim = kValue, a.capacity = depth + n_token, a.position = depth, a.n_token = n_token, a.dtype = EDGEQKV_INT8;
    a.isa = isa, a.form = form, a.q_nope = q_nope.data(), a.q_rope = q_rope.data(), a.row = row.data();
    a.w_k = w_k.data(), a.w_v = w_v.data(), a.w_k_scale = a.w_v_scale = matrix_scale.data();
    a.cache = cache.data(), a.cache_scale = cache_scale.data(), a.out = out.data();
    return a;
  }
};

double milliseconds(const edgeqkv_latent_attention_args& args) {
  const auto start = std::chrono::steady_clock::now();
  if (int error = edgeqkv_latent_attention(&args, nullptr, nullptr, 0)) std::exit(std::printf("error %d\n", error));
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

double percentile(std::vector<double> x, double p) {
  std::sort(x.begin(), x.end());
  return x[size_t(p * double(x.size() - 1) + 0.5)];
}

}  // namespace

int main(int argc, char** argv) {
  int isa = EDGEQKV_ISA_AUTO;
  for (int i = EDGEQKV_ISA_SCALAR; argc > 1 && i < EDGEQKV_ISA_COUNT; i++)
    if (!std::strcmp(argv[1], edgeqkv_attention_isa_name(i))) isa = i;
  isa = edgeqkv_attention_isa(isa);
  if (isa < 0 || (argc > 1 && std::strcmp(argv[1], edgeqkv_attention_isa_name(isa)))) {
    std::fprintf(stderr, "no path %s here\n", argv[1]);
    return 2;
  }
  std::vector<Case> cases;
  for (int depth : {0, 1024, 4096})
    for (int n_token : {16, 64, 256, 512, 1024}) cases.emplace_back(depth, n_token);
  constexpr int kRounds = 7;
  for (int round = 0; round < kRounds; round++)
    for (Case& c : cases)
      for (int form : {EDGEQKV_FORM_ABSORBED, EDGEQKV_FORM_EXPANDED})
        c.ms[form - EDGEQKV_FORM_ABSORBED].push_back(milliseconds(c.args(isa, form)));
  std::printf("path %s, one thread, %d rounds; ms, median (10th - 90th percentile)\n", edgeqkv_attention_isa_name(isa),
              kRounds);
  std::printf("depth  new          absorbed               expanded         expanded / absorbed  taken\n");
  for (Case& c : cases) {
    std::printf("%5d %5d", c.depth, c.n_token);
    for (const std::vector<double>& ms : c.ms)
      std::printf(" %8.1f (%6.1f - %6.1f)", percentile(ms, 0.5), percentile(ms, 0.1), percentile(ms, 0.9));
    const edgeqkv_latent_attention_args args = c.args(isa, EDGEQKV_FORM_AUTO);
    const bool expanded = edgeqkv_latent_attention_form(&args) == EDGEQKV_FORM_EXPANDED;
    std::printf(" %8.2f             %s\n", percentile(c.ms[1], 0.5) / percentile(c.ms[0], 0.5),
                expanded ? "expanded" : "absorbed");
  }
}
