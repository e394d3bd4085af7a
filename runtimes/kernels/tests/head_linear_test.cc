// Head linear against float64, on every path, with any number of threads.
//
// The bound. In each 512 channels x is off by max|x| / 65024 in each element (edgeqkv_head_linear.h), so y by |W|_1 max|x| / 65024
// over them, W being what the int8 weights and their scales stand for; float32 sums of one term for each 512 add 1e-6 of
// sum |x W|. The scalar path rounds once.
#include "edgeqkv_head_linear.h"
#include "problem.h"

namespace {

struct Linear {
  int n_head, n_in, n_out, n_token;
  std::vector<float> x, scale;
  std::vector<int8_t> weight;

  std::string name() const {
    return std::to_string(n_token) + " tokens, " + std::to_string(n_head) + " heads, " + std::to_string(n_in) + " to " +
           std::to_string(n_out);
  }
};

Linear random_linear(int n_head, int n_in, int n_out, int n_token) {
  Linear l = {n_head, n_in, n_out, n_token, {}, {}, {}};
  std::mt19937 random(unsigned(n_in + n_out + n_token));
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> byte(-127, 127);
  l.x.resize(size_t(n_token) * size_t(n_head) * size_t(n_in));
  l.weight.resize(size_t(n_head) * size_t(n_out) * size_t(n_in));
  l.scale.resize(size_t(n_head) * size_t(n_out));
  for (float& x : l.x) x = normal(random);
  for (float& x : l.scale) x = std::fabs(normal(random)) / 100;
  for (int8_t& x : l.weight) x = int8_t(byte(random));
  return l;
}

edgeqkv_head_linear_args args_of(const Linear& l, std::vector<float>& y, int isa) {
  y.assign(size_t(l.n_token) * size_t(l.n_head) * size_t(l.n_out), -1);
  edgeqkv_head_linear_args a = {};
  a.size = sizeof a, a.n_head = l.n_head, a.n_in = l.n_in, a.n_out = l.n_out, a.n_token = l.n_token;
  a.isa = isa, a.x = l.x.data(), a.weight = l.weight.data(), a.scale = l.scale.data(), a.y = y.data();
  return a;
}

void check(const Linear& l) {
  std::vector<float> y, threaded;
  for (int isa : paths()) {
    const char* path = edgeqkv_attention_isa_name(isa);
    edgeqkv_head_linear_args a = args_of(l, y, isa);
    int error = edgeqkv_head_linear(&a, nullptr, nullptr, 0);
    CHECK(error == EDGEQKV_OK, "%d, %s, %s", error, path, l.name().c_str());
    for (int t = 0; t < l.n_token; t++)
      for (int h = 0; h < l.n_head; h++)
        for (int o = 0; o < l.n_out; o++) {
          const float* x = &l.x[(size_t(t) * size_t(l.n_head) + size_t(h)) * size_t(l.n_in)];
          const size_t row = size_t(h) * size_t(l.n_out) + size_t(o);
          double want = 0, absolute = 0, slack = 0;
          for (int first = 0; first < l.n_in; first += 512) {
            double largest = 0, weights = 0;
            for (int i = first; i < std::min(first + 512, l.n_in); i++) {
              double w = double(l.scale[row]) * l.weight[row * size_t(l.n_in) + size_t(i)];
              want += x[i] * w, absolute += std::fabs(x[i] * w), weights += std::fabs(w);
              largest = std::max(largest, std::fabs(double(x[i])));
            }
            slack += weights * largest / 65024;
          }
          double error = y[(size_t(t) * size_t(l.n_head) + size_t(h)) * size_t(l.n_out) + size_t(o)] - want;
          double bound = 1e-6 * absolute + (isa == EDGEQKV_ISA_SCALAR ? 0 : slack);
          CHECK(std::fabs(error) <= bound, "%g, bound %g, token %d head %d output %d, %s, %s", error, bound, t, h, o, path,
                l.name().c_str());
        }
    for (int threads : {2, 5}) {
      a = args_of(l, threaded, isa);
      CHECK(edgeqkv_head_linear(&a, threaded_for, &threads, threads) == EDGEQKV_OK, "%s", path);
      CHECK(threaded == y, "%d threads, %s, %s", threads, path, l.name().c_str());
    }
  }
}

// A NaN or an infinity of x reaches its own token and head; zeros and denormals give what they are.
void check_values(int n_token) {
  for (int isa : paths()) {
    const char* path = edgeqkv_attention_isa_name(isa);
    Linear l = random_linear(2, 64, 24, n_token);
    std::vector<float> y;
    for (float bad : {NAN, INFINITY}) {
      Linear b = l;
      b.x[64 + 5] = bad;  // token 0, head 1
      edgeqkv_head_linear_args a = args_of(b, y, isa);
      CHECK(edgeqkv_head_linear(&a, nullptr, nullptr, 0) == EDGEQKV_OK, "%s", path);
      for (size_t i = 0; i < y.size(); i++)
        CHECK(std::isfinite(y[i]) == (i < 24 || i >= 48), "%g from %g at %zu, %s", y[i], bad, i, path);
    }
    for (float size : {0.0f, 1e-40f}) {
      for (float& x : l.x) x = size;
      edgeqkv_head_linear_args a = args_of(l, y, isa);
      CHECK(edgeqkv_head_linear(&a, nullptr, nullptr, 0) == EDGEQKV_OK, "%s", path);
      for (float value : y) CHECK(std::fabs(value) <= 100 * size, "%g from %g, %s", value, size, path);
    }
  }
}

void check_errors() {
  Linear l = random_linear(2, 64, 24, 3);
  std::vector<float> y;
  auto expect = [&](int error, auto change) {
    edgeqkv_head_linear_args a = args_of(l, y, EDGEQKV_ISA_AUTO);
    change(a);
    int got = edgeqkv_head_linear(&a, nullptr, nullptr, 0);
    CHECK(got == error, "%d, want %d", got, error);
  };
  using A = edgeqkv_head_linear_args&;
  expect(EDGEQKV_OK, [](A) {});
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.size = 8; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.n_head = 0; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.n_in = 0; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.n_in = 40; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.n_in = 2064; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.n_out = 0; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.n_token = 0; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.n_token = INT32_MAX; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.x = nullptr; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.weight = nullptr; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.scale = nullptr; });
  expect(EDGEQKV_BAD_ARGUMENT, [](A a) { a.y = nullptr; });
  expect(EDGEQKV_NO_ISA, [](A a) { a.isa = 99; });
  CHECK(edgeqkv_head_linear(nullptr, nullptr, nullptr, 0) == EDGEQKV_BAD_ARGUMENT, "null arguments");
}

}  // namespace

int main() {
  check_errors();
  for (int n_token : {3, 20}) check_values(n_token);
  for (int n_token : {1, 3, 8, 9, 16, 21, 32, 33, 70})
    for (int n_in : {16, 48, 192}) check(random_linear(3, n_in, 40, n_token));
  for (int n_token : {2, 19})
    for (int n_out : {1, 7, 15, 17, 33, 65}) check(random_linear(2, 64, n_out, n_token));
  for (int n_token : {2, 40}) {
    check(random_linear(1, 1200, 20, n_token));   // wider than one integer sum
    check(random_linear(16, 128, 512, n_token));  // MLA: W_K, then W_V
    check(random_linear(16, 512, 128, n_token));
  }
  return finish("head linear");
}
