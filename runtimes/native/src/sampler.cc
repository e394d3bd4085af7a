#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "error.h"

namespace edgeqkv {

Sampler::Sampler(const Sampling& s) : sampling_(s), state_(s.seed) {
  auto demand = [](bool holds, const char* what) {
    if (!holds) throw Error(what);
  };
  demand(std::isfinite(s.temperature) && s.temperature >= 0, "temperature must be 0 (greedy) or a positive number");
  demand(s.top_k >= 0, "top-k must be at least 1, or 0 for all");
  demand(s.top_p > 0 && s.top_p <= 1, "top-p must be above 0 and at most 1");
  demand(std::isfinite(s.repetition_penalty) && s.repetition_penalty > 0, "the repetition penalty must be a positive number");
}

int64_t Sampler::choose(const float* logits, size_t n, const std::vector<int64_t>& held) {
  if (!std::all_of(logits, logits + n, [](float x) { return std::isfinite(x); }))
    throw Error("the logits after " + std::to_string(held.size()) + " tokens are not finite", kCheckFailed);
  scores_.assign(logits, logits + n);
  if (sampling_.repetition_penalty != 1)
    for (const int64_t id : held) {  // from the logit itself, so that an id that is held twice counts once
      const double x = logits[id];
      scores_[size_t(id)] = x > 0 ? x / sampling_.repetition_penalty : x * sampling_.repetition_penalty;
    }
  const auto best = std::max_element(scores_.begin(), scores_.end());
  if (sampling_.temperature == 0) return best - scores_.begin();

  const double highest = *best;
  double least = -HUGE_VAL;  // the score that an id needs
  if (sampling_.top_k && size_t(sampling_.top_k) < n) {
    weights_ = scores_;
    std::nth_element(weights_.begin(), weights_.begin() + (sampling_.top_k - 1), weights_.end(), std::greater<>());
    least = weights_[size_t(sampling_.top_k - 1)];
  }
  weights_.resize(n);
  for (size_t i = 0; i < n; i++)
    weights_[i] = scores_[i] < least ? 0 : std::exp((scores_[i] - highest) / sampling_.temperature);
  if (sampling_.top_p < 1) {
    order_.resize(n);
    std::iota(order_.begin(), order_.end(), size_t{0});
    std::sort(order_.begin(), order_.end(),
              [&](size_t a, size_t b) { return weights_[a] != weights_[b] ? weights_[a] > weights_[b] : a < b; });
    const double wanted = sampling_.top_p * std::accumulate(weights_.begin(), weights_.end(), 0.0);
    double sum = 0;
    for (const size_t id : order_) {
      if (sum >= wanted) weights_[id] = 0;
      sum += weights_[id];
    }
  }
  const double target = uniform() * std::accumulate(weights_.begin(), weights_.end(), 0.0);
  double sum = 0;
  size_t last = 0;
  for (size_t i = 0; i < n; i++) {
    if (weights_[i] == 0) continue;
    last = i;
    sum += weights_[i];
    if (sum > target) break;
  }
  return int64_t(last);
}

double Sampler::uniform() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return double((z ^ z >> 31) >> 11) * 0x1p-53;
}

}  // namespace edgeqkv
