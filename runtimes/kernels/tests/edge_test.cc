// Errors, threads, decode against prefill, and values that break careless softmax.
#include <tuple>

#include "problem.h"

namespace {

const int kDtypes[] = {EDGEQKV_FP32, EDGEQKV_FP16, EDGEQKV_INT8};

void check_errors() {
  Problem p = random_problem(4, 2, 32, 10, 0, 2, EDGEQKV_INT8, true, 1);
  Result r = run(p, EDGEQKV_ISA_AUTO);
  edgeqkv_attention_args good = args_of(p, r, EDGEQKV_ISA_AUTO);
  good.n_token = 2, good.q = p.q.data(), good.k = p.k.data(), good.v = p.v.data(), good.out = r.out.data();
  auto expect = [&](int error, auto change) {
    edgeqkv_attention_args a = good;
    change(a);
    int got = edgeqkv_attention(&a, nullptr, nullptr, 0);
    CHECK(got == error, "%d, want %d", got, error);
  };
  using A = edgeqkv_attention_args&;
  expect(EDGEQKV_OK, [](A) {});
  expect(EDGEQKV_OK, [](A a) { a.position = 8; });
  std::vector<uint8_t> before = r.k_cache;
  expect(EDGEQKV_PAST_CAPACITY, [](A a) { a.position = 9; });
  expect(EDGEQKV_PAST_CAPACITY, [](A a) { a.position = INT32_MAX; });
  CHECK(before == r.k_cache, "a refused call wrote to the cache");
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.position = -1; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.n_token = 0; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.n_head = 3; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.n_head = 0; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.n_kv_head = 0; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.size = 0; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.size += 8; });
  auto one = [](A a) { a.v = nullptr; };  // a row of 32 channels, key and value slices of it
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.row_dim = a.key_dim = 12; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.row_dim = a.key_dim = 2056; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.row_dim = a.key_dim = 0; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.value_dim = 0; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.value_dim = 2056; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.key_dim = 24; });  // with v, the key is the row of k
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.value_start = 8; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.scale_split = 16; });
  expect(EDGEQKV_OK, [&](A a) { one(a), a.key_dim = 24, a.value_start = 16, a.value_dim = 16; });
  expect(EDGEQKV_BAD_ARGUMENT, [&](A a) { one(a), a.key_dim = 40; });
  expect(EDGEQKV_BAD_ARGUMENT, [&](A a) { one(a), a.key_dim = 20; });
  expect(EDGEQKV_BAD_ARGUMENT, [&](A a) { one(a), a.value_start = -8; });
  expect(EDGEQKV_BAD_ARGUMENT, [&](A a) { one(a), a.value_start = 4, a.value_dim = 16; });
  expect(EDGEQKV_BAD_ARGUMENT, [&](A a) { one(a), a.value_start = 24, a.value_dim = 16; });
  expect(EDGEQKV_BAD_ARGUMENT, [&](A a) { one(a), a.value_start = INT32_MAX - 7; });
  expect(EDGEQKV_BAD_ARGUMENT, [&](A a) { one(a), a.scale_split = 32; });
  expect(EDGEQKV_BAD_ARGUMENT, [&](A a) { one(a), a.scale_split = -8; });
  expect(EDGEQKV_BAD_ARGUMENT, [&](A a) { one(a), a.scale_split = 20; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.capacity = 0; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.capacity = INT32_MAX; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.dtype = 3; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.q = nullptr; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.k = nullptr; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.out = nullptr; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.k_cache = nullptr; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.v_cache = nullptr; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.k_scale = nullptr; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.v_scale = nullptr; });
  expect(EDGEQKV_OK, [](A a) { a.v = nullptr, a.v_cache = nullptr, a.v_scale = nullptr; });
  expect(EDGEQKV_NO_ISA, [](A a) { a.isa = 99; });
#if defined(__x86_64__)
  expect(EDGEQKV_NO_ISA, [](A a) { a.isa = EDGEQKV_ISA_NEON; });
#else
  expect(EDGEQKV_NO_ISA, [](A a) { a.isa = EDGEQKV_ISA_AVX2; });
#endif
  CHECK(edgeqkv_attention(nullptr, nullptr, nullptr, 0) == EDGEQKV_BAD_ARGUMENT, "null arguments");
}

// Largest difference of two outputs over the largest value.
double difference(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0, size = 0;
  for (size_t i = 0; i < a.size(); i++) {
    worst = std::isnan(a[i] - b[i]) ? INFINITY : std::max(worst, std::fabs(double(a[i]) - b[i]));
    size = std::max(size, std::fabs(double(a[i])));
  }
  return worst / size;
}

// Cutting over heads and query blocks changes nothing, to the bit. Cutting over the sequence adds up in another order: both
// results are within 1e-5 of the truth (attention_test.cc), and so of each other. Over int8 each block's weights are also rounded
// to steps of its own largest one.
void check_threads(int isa) {
  struct Case {
    int n_head, n_kv_head, depth, n_token;
    Row row = 32;
  };
  const Row latent = {48, 48, 0, 32, 32}, unturned = {192, 128, 64, 128};
  const Case cases[] = {{4, 4, 300, 1},           {1, 1, 1500, 1, 128},    {20, 1, 1500, 1},
                        {3, 3, 1500, 1, 128},     {2, 1, 900, 50},         {2, 2, 0, 90},
                        {20, 1, 1500, 1, latent}, {2, 1, 900, 50, latent}, {3, 3, 1500, 1, unturned},
                        {6, 1, 1500, 1},          {8, 1, 1501, 1, latent}};
  for (int dtype : kDtypes)
    for (const auto& [n_head, n_kv_head, depth, n_token, row] : cases) {
      Problem p = random_problem(n_head, n_kv_head, row, depth + n_token, depth, n_token, dtype, false, 7);
      Result serial = run(p, isa);
      double limit = 1e-5;
      if (dtype == EDGEQKV_INT8) {
        Reference ref = reference(p, true);
        double slack = *std::max_element(ref.weight_slack.begin(), ref.weight_slack.end()), size = 0;
        for (double x : ref.out) size = std::max(size, std::fabs(x));
        limit += 2 * slack / 65024 / size;
      }
      for (int threads : {2, 5}) {
        Result r = run(p, isa, threads);
        int rows = n_token * (n_head / n_kv_head), blocks = n_kv_head * ((rows + 31) / 32);
        int products = (depth + n_token) * std::min(rows, 32) * (row.key_dim + row.value_dim);
        bool same = blocks >= 2 * threads || products < 2 << 17;
        CHECK(r.error == EDGEQKV_OK && difference(serial.out, r.out) <= (same ? 0 : limit), "%g with %d threads, %s, %s",
              difference(serial.out, r.out), threads, edgeqkv_attention_isa_name(isa), p.name().c_str());
        CHECK(serial.k_cache == r.k_cache && serial.k_scale == r.k_scale, "cache, %s", p.name().c_str());
      }
    }
}

// One prefill of all positions gives what decode gives at each of them.
void check_decode_is_prefill(int isa) {
  for (int dtype : kDtypes)
    for (const auto& [n_head, n_kv_head, row] : {std::tuple<int, int, Row>{2, 2, 48},
                                                 {20, 1, 48},
                                                 {6, 2, 48},
                                                 {20, 1, {80, 80, 0, 64, 64}},
                                                 {6, 2, {64, 48, 16, 48}}}) {
      Problem all = random_problem(n_head, n_kv_head, row, 80, 0, 80, dtype, false, 11);
      Result prefill = run(all, isa);
      ptrdiff_t n_in = n_head * row.key_dim, n_out = n_head * row.value_dim;
      for (int t : {0, 1, 31, 40, 79}) {
        Problem one = all;
        one.depth = t, one.n_token = 1;
        one.q.assign(all.q.begin() + n_in * t, all.q.begin() + n_in * (t + 1));
        Result decode = run(one, isa);
        std::vector<float> same(prefill.out.begin() + n_out * t, prefill.out.begin() + n_out * (t + 1));
        // The integer dot products round a decoded query to 16 bits, which a prefilled one is not.
        double limit = dtype == EDGEQKV_INT8 ? 1e-4 : 1e-6;
        CHECK(difference(same, decode.out) <= limit, "%g at %d, %s, %s", difference(same, decode.out), t,
              edgeqkv_attention_isa_name(isa), all.name().c_str());
      }
    }
}

// NaN in one place reaches what attends to it and nothing else.
void check_nan(int isa) {
  for (int dtype : kDtypes)
    for (float bad : {NAN, INFINITY, -INFINITY})
      for (auto [n_head, depth, n_token] : {std::array<int, 3>{2, 70, 1}, {2, 0, 100}, {40, 70, 1}, {2, 70, 6}}) {
        Problem p = random_problem(n_head, 2, 32, depth + n_token, depth, n_token, dtype, true, 13);
        const int at = depth + n_token / 2;  // position of the bad key, in KV head 1
        p.k[p.kv_index(at, 1, 5)] = bad;
        Result r = run(p, isa);
        CHECK(r.error == EDGEQKV_OK, "error %d", r.error);
        for (int t = 0; t < n_token; t++)
          for (int h = 0; h < n_head; h++) {
            float x = r.out[(size_t(t) * size_t(n_head) + size_t(h)) * 32];
            bool sees = h >= n_head / 2 && depth + t >= at;
            // An infinite key gives an infinite score: NaN, or on -inf no weight. Only NaN is certain to show.
            if (!sees)
              CHECK(!std::isnan(x), "token %d head %d, %s, %s", t, h, edgeqkv_attention_isa_name(isa), p.name().c_str());
            if (sees && (std::isnan(bad) || dtype == EDGEQKV_INT8))
              CHECK(std::isnan(x), "token %d head %d, %s, %s", t, h, edgeqkv_attention_isa_name(isa), p.name().c_str());
          }
        p = random_problem(n_head, 2, 32, depth + n_token, depth, n_token, dtype, false, 13);
        p.q[3] = bad;  // token 0, head 0
        r = run(p, isa);
        CHECK(std::isnan(r.out[0]) && !std::isnan(r.out[32]), "query %g gives %g and %g, %s, %s", bad, r.out[0], r.out[32],
              edgeqkv_attention_isa_name(isa), p.name().c_str());
      }
}

// A row's two int8 scales keep a NaN apart: in the rotary part it reaches the score and so everything, in a slice that is only
// value it reaches those channels alone.
void check_nan_of_a_slice(int isa) {
  for (int n_head : {2, 20})
    for (auto [bad, first_nan] : {std::array<int, 2>{0, 0}, {40, 16}}) {  // a channel of key and value, one of the value alone
      Problem p = random_problem(n_head, 1, {48, 32, 16, 32, 32}, 80, 70, 1, EDGEQKV_INT8, false, 19);
      p.k[p.kv_index(30, 0, bad)] = NAN;
      Result r = run(p, isa);
      for (int d = 0; d < 32; d++)
        CHECK(std::isnan(r.out[size_t(d)]) == (d >= first_nan), "channel %d is %g, %s, %s", d, r.out[size_t(d)],
              edgeqkv_attention_isa_name(isa), p.name().c_str());
    }
}

void check_extremes(int isa) {
  const char* path = edgeqkv_attention_isa_name(isa);
  for (int dtype : kDtypes)
    for (int n_head : {2, 40}) {
      auto make = [&](float size) { return random_problem(n_head, 2, 32, 100, 90, 3, dtype, true, 17, size); };
      auto error = [&](const Problem& p) { return relative_error(p, run(p, isa).out, reference(p, true).out); };
      // int8 on an integer path: what 16 bits of the query may do, see attention_test.cc.
      auto limit = [&](const Problem& p) {
        return dtype == EDGEQKV_INT8 ? 1e-4 + std::expm1(2 * reference(p, true).query_slack) : 1e-5;
      };

      Problem p = make(1);  // all equal: the mean of equal values is the value
      for (auto* x : {&p.q, &p.k, &p.v}) std::fill(x->begin(), x->end(), 0.75f);
      CHECK(error(p) <= 1e-6, "%g, all equal, %s, %s", error(p), path, p.name().c_str());

      p = make(1);  // one dominant score: its value, whole
      for (int d = 0; d < 32; d++) p.k[p.kv_index(40, 0, d)] = p.k[p.kv_index(40, 1, d)] = 100 * p.q[size_t(d)];
      for (size_t i = 0; i < p.q.size(); i++) p.q[i] = p.q[i % 32];
      Result r = run(p, isa);
      for (int d = 0; d < 32; d++) {
        float scale = 1;
        double want = stored(dtype, &p.v[p.kv_index(40, 0, 0)], 32, d, &scale) * scale;
        CHECK(std::fabs(r.out[size_t(d)] - want) <= 1e-6 * std::fabs(want), "%g, want %g, dominant, %s, %s", r.out[size_t(d)],
              want, path, p.name().c_str());
      }

      p = make(1);  // values of 1e4 under small scores
      for (float& x : p.v) x = x < 0 ? -1e4f : 1e4f;
      CHECK(error(p) <= limit(p), "%g, values of 1e4, %s, %s", error(p), path, p.name().c_str());

      p = make(1);  // keys of 1e4 under queries of 1e-4
      for (float& x : p.k) x = x < 0 ? -1e4f : 1e4f;
      for (float& x : p.q) x *= 1e-4f;
      CHECK(error(p) <= limit(p), "%g, keys of 1e4, %s, %s", error(p), path, p.name().c_str());

      p = make(1e4f);  // everything of 1e4: scores of 1e9, where fp32 only knows the winner; it must stay finite
      for (float x : run(p, isa).out) CHECK(std::isfinite(x), "%g, all of 1e4, %s, %s", x, path, p.name().c_str());

      // Denormals (in fp16 they are zeros): scores are all 0 and the output is the mean. Errors are counted in the spacing of
      // denormals, 2^-149: half of it for each of 93 products and sums, and 64 for the int8 scale, which has that spacing too.
      p = make(1e-40f);
      std::vector<double> ref = reference(p, true).out;
      r = run(p, isa);
      for (size_t i = 0; i < ref.size(); i++)
        CHECK(std::fabs(r.out[i] - ref[i]) <= 112 * std::ldexp(1.0, -149), "%g, want %g, denormals, %s, %s", r.out[i], ref[i],
              path, p.name().c_str());

      p = make(0);
      for (float x : run(p, isa).out) CHECK(x == 0, "%g, zeros, %s, %s", x, path, p.name().c_str());
    }
}

}  // namespace

int main() {
  check_errors();
  for (int isa : paths()) {
    check_threads(isa);
    check_decode_is_prefill(isa);
    check_nan(isa);
    check_nan_of_a_slice(isa);
    check_extremes(isa);
  }
  return finish("edge cases");
}
