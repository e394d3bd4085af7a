// Choosing the next token from logits, as docs/sessions.md defines it for every language.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace edgeqkv {

struct Sampling {
  double temperature = 0;
  int64_t top_k = 0;  // 0: all
  double top_p = 1, repetition_penalty = 1;
  uint64_t seed = 0;
};

class Sampler {
 public:
  // Error where a value is outside of its range.
  explicit Sampler(const Sampling& sampling);

  // One of the `n` ids; `held` are those that the repetition penalty is for. Error where a logit is not finite.
  int64_t choose(const float* logits, size_t n, const std::vector<int64_t>& held);

 private:
  double uniform();  // in [0, 1), from SplitMix64

  Sampling sampling_;
  uint64_t state_;
  std::vector<double> scores_, weights_;
  std::vector<size_t> order_;
};

}  // namespace edgeqkv
