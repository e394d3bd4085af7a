// Every path against float64 attention, over shapes, depths and dtypes.
//
// The int8 bound. Let k' = k + e be the stored key, |e_d| <= s/2 = max|k|/254 (half a step; the header's rule), and
// c = 1/sqrt(key_dim). A score moves by at most Delta = c |q|_1 max|k| / 254, over all keys of the row. Where a row has two
// scales, each slice of the key moves it by its own c |q|_1 s/2, and Delta is their sum. max|k| and s are of all that the scale
// is made from, which may be more than the key. Weights are
// p_j = exp(s_j) / sum exp(s_i), so p'_j / p_j lies within exp(-2 Delta) .. exp(2 Delta): |p'_j - p_j| <= (exp(2 Delta) - 1) p_j.
// With |v' - v| <= max|v|/254 and sum p'_j = 1:
//   |out' - out| <= sum |p'_j - p_j| |v_j| + sum p'_j |v'_j - v_j| <= (exp(2 Delta) - 1) sum p_j |v_j| + max|v| / 254.
// That is against k and v themselves. Against what the cache holds only arithmetic is left, plus, on the paths with integer
// sums (all but scalar), the query's 16 bits: |q' - q| <= max|q| / 65024 in each slice with its own scale, so Delta_q =
// c |k'|_1 max|q| / 65024, summed over the slices, in the same formula; and the weights': each w_j = p_j scale_j, with the scale
// of the channel, is off by max w / 65024 at most, the values being integers i_j:
// |out' - out| <= max w / 65024 * sum |i_j|.
#include <cstdlib>

#include "problem.h"

namespace {

constexpr double kArithmetic = 1e-5;  // the fp32 requirement; sums of |p v| rather than of p v, so that signs cannot cancel

bool integer_sums(const Problem& p, int isa) { return p.dtype == EDGEQKV_INT8 && isa != EDGEQKV_ISA_SCALAR; }

double worst_fp32 = 0, worst_fp16 = 0, worst_int8 = 0;  // printed, so that a drift below the limits is seen too

void check_out(const Problem& p, const Result& r, int isa, const Reference& exact, const Reference& rounded) {
  const char* path = edgeqkv_attention_isa_name(isa);
  double error = relative_error(p, r.out, exact.out);
  if (p.dtype == EDGEQKV_FP32) {
    CHECK(error <= 1e-5, "%g, %s, %s", error, path, p.name().c_str());
    worst_fp32 = std::max(worst_fp32, error);
  } else if (p.dtype == EDGEQKV_FP16) {
    CHECK(error <= 2e-3, "%g, %s, %s", error, path, p.name().c_str());
    worst_fp16 = std::max(worst_fp16, error);
  } else {
    worst_int8 = std::max(worst_int8, error);
    for (size_t i = 0; i < r.out.size(); i++) {
      double bound = std::expm1(2 * exact.score_slack) * exact.absolute[i] + exact.value_slack +
                     rounded.weight_slack[i] / 65024 + (std::expm1(2 * rounded.query_slack) + kArithmetic) * exact.absolute[i];
      CHECK(std::fabs(r.out[i] - exact.out[i]) <= bound, "%g, bound %g, %s, %s", r.out[i] - exact.out[i], bound, path,
            p.name().c_str());
    }
  }
  // Against what the cache holds. A query's rounding errors are independent, so its worst case is far from reached.
  double slack = integer_sums(p, isa) ? std::expm1(2 * rounded.query_slack) : 0;
  for (size_t i = 0; i < r.out.size(); i++) {
    double bound = (slack + kArithmetic) * rounded.absolute[i];
    if (integer_sums(p, isa)) bound += rounded.weight_slack[i] / 65024;
    CHECK(std::fabs(r.out[i] - rounded.out[i]) <= bound, "%g, bound %g, %s, %s", r.out[i] - rounded.out[i], bound, path,
          p.name().c_str());
  }
}

double element(const Problem& p, const Tensor& t, const std::vector<uint8_t>& cache, size_t row, int d) {
  size_t i = row * size_t(t.dim) + size_t(d);
  if (p.dtype == EDGEQKV_INT8) return reinterpret_cast<const int8_t*>(cache.data())[i];
  if (p.dtype == EDGEQKV_FP32) {
    float x;
    std::memcpy(&x, &cache[i * 4], 4);
    return x;
  }
  uint16_t h;
  std::memcpy(&h, &cache[i * 2], 2);
  int exponent = h >> 10 & 31, mantissa = h & 1023;
  double x = exponent == 31  ? (mantissa ? NAN : INFINITY)
             : exponent == 0 ? std::ldexp(mantissa, -24)
                             : std::ldexp(mantissa + 1024, exponent - 25);
  return h & 0x8000 ? -x : x;
}

// The written rows hold exactly what the header says, the rows after them are untouched.
void check_cache(const Problem& p, int isa, const Tensor& t, const std::vector<uint8_t>& cache,
                 const std::vector<float>& scales) {
  const char* path = edgeqkv_attention_isa_name(isa);
  size_t row_bytes = size_t(t.dim) * element_bytes(p.dtype);
  for (int g = 0; g < p.n_kv_head; g++) {
    for (int j = 0; j < p.depth + p.n_token; j++)
      for (int d = 0; d < t.dim; d++) {
        float scale = -1;
        double want = stored(t, p.dtype, t.row(j, g), d, &scale);
        double got = element(p, t, cache, p.cache_index(g, j), d);
        CHECK(got == want, "head %d position %d dim %d: %g, want %g, %s, %s", g, j, d, got, want, path, p.name().c_str());
        CHECK(scales[p.scale_index(t, g, j, d)] == scale, "head %d position %d, %s, %s", g, j, path, p.name().c_str());
      }
    for (int j = p.depth + p.n_token; j < p.capacity; j++) {
      for (size_t b = 0; b < row_bytes; b++)
        CHECK(cache[p.cache_index(g, j) * row_bytes + b] == kUntouched, "head %d position %d written, %s, %s", g, j, path,
              p.name().c_str());
      for (int d : {0, t.dim - 1})
        CHECK(scales[p.scale_index(t, g, j, d)] == -1, "scale of head %d position %d written, %s, %s", g, j, path,
              p.name().c_str());
    }
  }
}

// EDGEQKV_TEST_EVERY=n checks only each n-th problem: under emulation all of them take minutes. n is best odd, so that the rest
// still varies in every dimension.
int every() {
  const char* n = std::getenv("EDGEQKV_TEST_EVERY");
  return n ? std::max(1, std::atoi(n)) : 1;
}

int problems = 0, checked = 0;

void check(const Problem& p) {
  if (problems++ % every() != 0) return;
  checked++;
  Reference exact = reference(p, false), rounded = reference(p, true);
  for (int isa : paths()) {
    Result r = run(p, isa);
    CHECK(r.error == EDGEQKV_OK, "error %d, %s", r.error, p.name().c_str());
    check_out(p, r, isa, exact, rounded);
    check_cache(p, isa, p.keys(), r.k_cache, r.k_scale);
    if (p.separate_v) check_cache(p, isa, p.values(), r.v_cache, r.v_scale);
  }
}

}  // namespace

int main() {
  unsigned seed = 1;
  const int dtypes[] = {EDGEQKV_FP32, EDGEQKV_FP16, EDGEQKV_INT8};
  const int heads[][2] = {{1, 1}, {3, 3}, {6, 2}, {5, 1}, {7, 7}, {16, 1}, {24, 2}, {33, 1}};
  for (int dtype : dtypes)
    for (bool separate_v : {false, true}) {
      for (int dim : {8, 24, 32, 64, 80, 96, 128, 136})
        for (int n_token : {1, 5, 40}) check(random_problem(4, 2, dim, 111, 70, n_token, dtype, separate_v, seed++));
      for (auto [n_head, n_kv_head] : heads)
        for (int n_token : {1, 3, 37})
          check(random_problem(n_head, n_kv_head, 32, 140, 101, n_token, dtype, separate_v, seed++));
      const int capacity = 130;
      for (int depth : {0, 1, 2, 63, 64, 65, capacity - 1})  // capacity - 1: the call fills the cache
        for (int n_head : {2, 8, 34}) check(random_problem(n_head, 2, 16, capacity, depth, 1, dtype, separate_v, seed++));
      check(random_problem(2, 2, 64, capacity, 0, capacity, dtype, separate_v, seed++));  // prefill up to capacity
      check(random_problem(2, 1, 64, 1, 0, 1, dtype, separate_v, seed++));
      check(random_problem(2, 1, 64, 1200, 1100, 1, dtype, separate_v, seed++));
      check(random_problem(20, 1, 64, 700, 600, 4, dtype, separate_v, seed++));
      // Grouped decode, where blocks are seen whole: odd numbers of cached rows and of query rows, widths of 8, 16 and 32 left over,
      // and one too wide for integer tiles.
      for (int dim : {8, 40, 56, 72, 120, 520})
        for (int depth : {4, 65, 130})
          check(random_problem(5 + 2 * (depth % 7), 1, dim, 140, depth, 1, dtype, separate_v, seed++));
    }
  // Rows with slices. MLA has one KV head, its own softmax scale, and one or two scales a row.
  struct Sliced {
    int n_head, n_kv_head;
    Row row;
    bool separate_v;
  };
  const Sliced sliced[] = {
      {16, 1, {576, 576, 0, 512, 512}, false}, {16, 1, {576, 576, 0, 512}, false},  // MLA, 512 + 64
      {40, 1, {288, 288, 0, 256, 256}, false}, {40, 1, {288, 288, 0, 256}, false},  // MLA, 256 + 32
      {7, 1, {72, 72, 0, 56, 56}, false},      {7, 1, {72, 72, 0, 56}, false},      // small and odd
      {20, 1, {48, 48, 0, 32, 32}, false},     {2, 1, {1040, 1040, 0, 1024, 1024}, false},
      {6, 2, {80, 64, 16, 64}, false},         {6, 2, {72, 64, 8, 64}, false},        // value from before the rotation
      {36, 2, {96, 64, 32, 64, 48}, false},    {18, 1, {48, 32, 16, 32, 32}, false},  // a scale that changes in both slices
      {3, 3, {64, 24, 40, 16, 8}, false},      {20, 1, {64, 16, 16, 48, 32}, false},  // slices apart; a key under one scale
      {4, 4, {192, 192, 0, 128}, true},        {20, 1, {192, 192, 0, 128}, true},     // MLA expanded; the same as MQA
      {6, 2, {24, 24, 0, 40}, true},           {34, 2, {32, 32, 0, 80}, true},
  };
  for (int dtype : dtypes)
    for (const Sliced& s : sliced)
      for (auto [depth, n_token] : {std::array<int, 2>{70, 1}, {131, 1}, {0, 9}, {64, 3}}) {
        Problem p = random_problem(s.n_head, s.n_kv_head, s.row, 140, depth, n_token, dtype, s.separate_v, seed++);
        if (depth % 2) p.scale = 0.1f;
        if (s.row.scale_split > 0)  // the two slices differ in size, as a latent and its rotary part do
          for (size_t i = 0; i < p.k.size(); i++)
            if (int(i % size_t(s.row.row_dim)) >= s.row.scale_split) p.k[i] *= 0.25f;
        check(p);
      }
  std::printf("%d of %d problems\n", checked, problems);
  std::printf("largest relative errors: fp32 %.2g, fp16 %.2g, int8 %.2g (of k and v as given)\n", worst_fp32, worst_fp16,
              worst_int8);
  return finish("attention against float64");
}
