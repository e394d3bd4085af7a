// Latent attention in both forms against float64, on every path, and which of them is taken.
//
// The bound. Both compute from the rows as they are stored, so that only roundings differ: queries, outputs and latents to 16 bits,
// and sums in float32. Outputs are off by at most 2e-3 of the largest output of their token and head.
#include "edgeqkv_latent_attention.h"
#include "problem.h"

namespace {

struct Latent {
  int n_head, nope, rope, latent, value, depth, n_token, dtype;
  bool split;
  std::vector<float> q_nope, q_rope, rows, w_k_scale, w_v_scale;
  std::vector<int8_t> w_k, w_v;

  int n_row() const { return depth + n_token; }
  int row_dim() const { return latent + rope; }
  std::string name() const {
    const char* dtypes[] = {"fp32", "fp16", "int8"};
    char text[160];
    std::snprintf(text, sizeof text, "%d heads, %d + %d, row %d + %d%s, depth %d + %d, %s", n_head, nope, value, latent, rope,
                  split ? " of two scales" : "", depth, n_token, dtypes[dtype]);
    return text;
  }
};

Latent random_latent(int n_head, int nope, int rope, int latent, int value, int depth, int n_token, int dtype, bool split) {
  Latent l = {n_head, nope, rope, latent, value, depth, n_token, dtype, split, {}, {}, {}, {}, {}, {}, {}};
  std::mt19937 random(unsigned(nope + latent + depth + n_token));
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> byte(-127, 127);
  l.q_nope.resize(size_t(n_token * n_head * nope));
  l.q_rope.resize(size_t(n_token * n_head * rope));
  l.rows.resize(size_t(l.n_row() * l.row_dim()));
  l.w_k.resize(size_t(n_head * latent * nope));
  l.w_v.resize(size_t(n_head * value * latent));
  l.w_k_scale.resize(size_t(n_head * latent));
  l.w_v_scale.resize(size_t(n_head * value));
  for (auto* x : {&l.q_nope, &l.q_rope, &l.rows})
    for (float& y : *x) y = normal(random);
  for (int i = 0; i < l.n_row(); i++)  // the rotary key is larger than the latent, as a model's is
    for (int d = latent; d < l.row_dim(); d++) l.rows[size_t(i * l.row_dim() + d)] *= 4;
  for (auto* x : {&l.w_k, &l.w_v})
    for (int8_t& y : *x) y = int8_t(byte(random));
  for (auto* x : {&l.w_k_scale, &l.w_v_scale})
    for (float& y : *x) y = (0.5f + std::fabs(normal(random))) / 127 / std::sqrt(float(latent));
  return l;
}

struct Memory {
  std::vector<uint8_t> cache;
  std::vector<float> scale, out;
};

edgeqkv_latent_attention_args args_of(const Latent& l, Memory& m, int isa, int form) {
  const size_t capacity = size_t(l.n_row()) + 3;
  m.cache.resize(capacity * size_t(l.row_dim()) * element_bytes(l.dtype), kUntouched);
  m.scale.resize(2 * capacity, NAN);
  m.out.assign(size_t(l.n_token * l.n_head * l.value), NAN);
  edgeqkv_latent_attention_args a = {};
  a.size = sizeof a, a.n_head = l.n_head, a.nope_dim = l.nope, a.rope_dim = l.rope, a.latent_dim = l.latent,
  a.value_dim = l.value;
  a.scale_split = l.split ? l.latent : 0, a.capacity = int32_t(capacity), a.position = l.depth, a.n_token = l.n_token;
  a.dtype = l.dtype, a.isa = isa, a.form = form;
  a.q_nope = l.q_nope.data(), a.q_rope = l.q_rope.data(), a.row = l.rows.data() + size_t(l.depth * l.row_dim());
  a.w_k = l.w_k.data(), a.w_v = l.w_v.data(), a.w_k_scale = l.w_k_scale.data(), a.w_v_scale = l.w_v_scale.data();
  a.cache = m.cache.data(), a.cache_scale = m.scale.data(), a.out = m.out.data();
  return a;
}

// Rows as the cache holds them, in float64.
std::vector<double> stored_rows(const Latent& l) {
  std::vector<double> rows(l.rows.size());
  const Tensor tensor = {l.rows, 1, l.row_dim(), l.split ? l.latent : l.row_dim()};
  for (int i = 0; i < l.n_row(); i++)
    for (int d = 0; d < l.row_dim(); d++) {
      float scale = 1;
      const double x = stored(tensor, l.dtype, tensor.row(i, 0), d, &scale);
      rows[size_t(i * l.row_dim() + d)] = l.dtype == EDGEQKV_INT8 ? x * double(scale) : x;
    }
  return rows;
}

std::vector<double> reference(const Latent& l) {
  const std::vector<double> rows = stored_rows(l);
  std::vector<double> out(size_t(l.n_token * l.n_head * l.value)), k(size_t(l.nope)), v(size_t(l.n_row() * l.value)),
      score(size_t(l.n_row()));
  for (int h = 0; h < l.n_head; h++)
    for (int t = 0; t < l.n_token; t++) {
      double top = -INFINITY, sum = 0;
      const int n = l.depth + t + 1;
      const size_t query = size_t(t * l.n_head + h);
      for (int j = 0; j < n; j++) {
        const double* row = &rows[size_t(j * l.row_dim())];
        double x = 0;
        for (int i = 0; i < l.nope; i++) {
          double key = 0;
          for (int d = 0; d < l.latent; d++)
            key += row[d] * double(l.w_k_scale[size_t(h * l.latent + d)]) * l.w_k[size_t((h * l.latent + d) * l.nope + i)];
          x += key * double(l.q_nope[query * size_t(l.nope) + size_t(i)]);
        }
        for (int i = 0; i < l.rope; i++) x += row[l.latent + i] * double(l.q_rope[query * size_t(l.rope) + size_t(i)]);
        score[size_t(j)] = x / std::sqrt(double(l.nope + l.rope));
        top = std::max(top, score[size_t(j)]);
        for (int i = 0; t == 0 && i < l.value; i++) v[size_t(j * l.value + i)] = 0;
      }
      for (int j = 0; j < n; j++) sum += score[size_t(j)] = std::exp(score[size_t(j)] - top);
      for (int i = 0; i < l.value; i++) {
        double y = 0;
        for (int j = 0; j < n; j++) {
          double value = 0;
          for (int d = 0; d < l.latent; d++)
            value += rows[size_t(j * l.row_dim() + d)] * l.w_v[size_t((h * l.value + i) * l.latent + d)];
          y += score[size_t(j)] * value * double(l.w_v_scale[size_t(h * l.value + i)]);
        }
        out[query * size_t(l.value) + size_t(i)] = y / sum;
      }
    }
  return out;
}

// Fills the cache up to the depth: rows of floats as they are, others one token at a time.
void fill(const Latent& l, Memory& m, int isa) {
  if (l.dtype == EDGEQKV_FP32) {
    args_of(l, m, isa, EDGEQKV_FORM_AUTO);
    std::memcpy(m.cache.data(), l.rows.data(), size_t(l.depth * l.row_dim()) * sizeof(float));
    return;
  }
  for (int i = 0; i < l.depth; i++) {
    edgeqkv_latent_attention_args a = args_of(l, m, isa, EDGEQKV_FORM_AUTO);
    a.position = i, a.n_token = 1, a.row = l.rows.data() + size_t(i * l.row_dim());
    CHECK(edgeqkv_latent_attention(&a, nullptr, nullptr, 0) == EDGEQKV_OK, "%s", l.name().c_str());
  }
}

void check(const Latent& l) {
  const std::vector<double> want = reference(l);
  for (int isa : paths())
    for (int form : {EDGEQKV_FORM_ABSORBED, EDGEQKV_FORM_EXPANDED})
      for (int threads : {1, 3}) {
        Memory m;
        fill(l, m, isa);
        edgeqkv_latent_attention_args a = args_of(l, m, isa, form);
        const int error = edgeqkv_latent_attention(&a, threaded_for, &threads, threads);
        const char* path = edgeqkv_attention_isa_name(isa);
        CHECK(error == EDGEQKV_OK, "%d, %s, %s", error, path, l.name().c_str());
        for (size_t first = 0; first < want.size(); first += size_t(l.value)) {
          double largest = 0;
          for (size_t i = first; i < first + size_t(l.value); i++) largest = std::max(largest, std::fabs(want[i]));
          for (size_t i = first; i < first + size_t(l.value); i++)
            CHECK(std::fabs(m.out[i] - want[i]) <= 2e-3 * largest, "%g, want %g, largest %g, form %d, %s, %d threads, %s",
                  m.out[i], want[i], largest, form, path, threads, l.name().c_str());
        }
      }
}

// A row that is NaN reaches every token that sees it, and no other.
void check_nan(int form) {
  for (int isa : paths()) {
    Latent l = random_latent(2, 16, 8, 32, 16, 0, 40, EDGEQKV_INT8, true);
    l.rows[size_t(20 * l.row_dim() + 3)] = NAN;
    Memory m;
    edgeqkv_latent_attention_args a = args_of(l, m, isa, form);
    CHECK(edgeqkv_latent_attention(&a, nullptr, nullptr, 0) == EDGEQKV_OK, "form %d", form);
    for (size_t i = 0; i < m.out.size(); i++)
      CHECK(std::isfinite(m.out[i]) == (int(i) / (l.n_head * l.value) < 20), "%g at %zu, form %d, %s", m.out[i], i, form,
            edgeqkv_attention_isa_name(isa));
  }
}

// A short step after many rows is absorbed, a long prompt at depth 0 expanded.
void check_choice() {
  for (int isa : paths()) {
    Latent l = random_latent(2, 128, 64, 512, 128, 0, 1, EDGEQKV_INT8, true);
    Memory m;
    auto form = [&](int depth, int n_token) {
      edgeqkv_latent_attention_args a = args_of(l, m, isa, EDGEQKV_FORM_AUTO);
      a.capacity = 1 << 16, a.position = depth, a.n_token = n_token;
      return edgeqkv_latent_attention_form(&a);
    };
    const char* path = edgeqkv_attention_isa_name(isa);
    CHECK(form(0, 1) == EDGEQKV_FORM_ABSORBED, "%s", path);
    CHECK(form(0, 512) == EDGEQKV_FORM_EXPANDED, "%s", path);
    CHECK(form(8192, 64) == EDGEQKV_FORM_ABSORBED, "%s", path);
    CHECK(form(8192, 4096) == EDGEQKV_FORM_EXPANDED, "%s", path);
  }
}

void check_errors() {
  Latent l = random_latent(2, 16, 8, 32, 16, 0, 3, EDGEQKV_INT8, true);
  Memory m;
  auto expect = [&](int error, auto change) {
    edgeqkv_latent_attention_args a = args_of(l, m, EDGEQKV_ISA_AUTO, EDGEQKV_FORM_AUTO);
    change(a);
    CHECK(edgeqkv_latent_attention(&a, nullptr, nullptr, 0) == error, "want %d", error);
    CHECK((edgeqkv_latent_attention_form(&a) == 0) == (error != EDGEQKV_OK), "want %d", error);
  };
  using A = edgeqkv_latent_attention_args&;
  expect(EDGEQKV_OK, [](A) {});
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.size = 8; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.n_head = 0; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.nope_dim = 24; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.rope_dim = 4; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.latent_dim = 40; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.latent_dim = INT32_MAX - 15; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.value_dim = 0; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.scale_split = 16; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.form = 3; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.dtype = 3; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.w_k = nullptr; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.cache_scale = nullptr; });
  expect(EDGEQKV_PAST_CAPACITY, [](A a) { a.position = 5; });
  expect(EDGEQKV_NO_ISA, [](A a) { a.isa = 99; });
  CHECK(edgeqkv_latent_attention(nullptr, nullptr, nullptr, 0) == EDGEQKV_BAD_ARGUMENT, "null arguments");
  CHECK(edgeqkv_latent_attention_form(nullptr) == 0, "null arguments");
}

}  // namespace

int main() {
  check_errors();
  check_choice();
  for (int form : {EDGEQKV_FORM_ABSORBED, EDGEQKV_FORM_EXPANDED}) check_nan(form);
  for (int dtype : {EDGEQKV_FP32, EDGEQKV_FP16, EDGEQKV_INT8}) {
    check(random_latent(3, 16, 8, 32, 24, 0, 5, dtype, false));
    check(random_latent(5, 32, 16, 48, 16, 7, 41, dtype, true));
    check(random_latent(2, 64, 32, 256, 64, 20, 1, dtype, true));    // MiniCPM3's widths
    check(random_latent(1, 128, 64, 512, 128, 9, 33, dtype, true));  // Youtu's
  }
  check(random_latent(2, 16, 1024, 16, 1024, 2100, 2, EDGEQKV_FP32, false));  // K and V of one head at a time
  return finish("latent attention");
}
