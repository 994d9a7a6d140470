#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "../files/errors.h"
#include "seeds.h"

namespace mobizo::trainer {
namespace {

// Whether logit i, scaled so that the greatest is 0, is among those to sample from.
std::vector<bool> kept(const std::vector<double>& scaled, const Sampling& sampling) {
  std::vector<bool> keep(scaled.size(), true);
  const auto k = static_cast<size_t>(sampling.top_k);
  if (k > 0 && k < scaled.size()) {
    std::vector<double> order(scaled);
    const auto least = order.begin() + static_cast<std::ptrdiff_t>(k) - 1;
    std::nth_element(order.begin(), least, order.end(), std::greater<>());
    for (size_t i = 0; i < scaled.size(); ++i) keep[i] = scaled[i] >= *least;
  }
  if (sampling.top_p >= 1) return keep;
  std::vector<size_t> order;  // from the least likely on
  for (size_t i = 0; i < scaled.size(); ++i)
    if (keep[i]) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scaled[a] < scaled[b]; });
  double all = 0, sum = 0;
  for (const size_t i : order) all += std::exp(scaled[i]);
  for (size_t at = 0; at + 1 < order.size(); ++at) {
    sum += std::exp(scaled[order[at]]) / all;
    if (sum > 1 - sampling.top_p) break;
    keep[order[at]] = false;
  }
  return keep;
}

}  // namespace

void check_sampling(const Sampling& sampling) {
  if (!(sampling.temperature >= 0) || !std::isfinite(sampling.temperature))
    fail("temperature must be at least 0 and finite, got ", sampling.temperature);
  if (sampling.top_k < 0) fail("top_k must be at least 0, got ", sampling.top_k);
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) fail("top_p must be in (0, 1], got ", sampling.top_p);
}

double uniform_of(int64_t seed, int64_t n) {
  return std::ldexp(static_cast<double>(static_cast<uint64_t>(query_seed(seed, n)) >> 11), -53);
}

int64_t choose(const std::vector<float>& logits, const Sampling& sampling, double uniform) {
  if (std::any_of(logits.begin(), logits.end(), [](float value) { return std::isnan(value); }))
    fail("the model gives logits that are no numbers");
  const auto greatest = std::max_element(logits.begin(), logits.end());
  if (greatest == logits.end() || !std::isfinite(*greatest)) fail("the model gives logits that are not finite");
  if (sampling.temperature == 0) return greatest - logits.begin();
  std::vector<double> scaled;
  scaled.reserve(logits.size());
  for (const float value : logits) scaled.push_back((double{value} - double{*greatest}) / sampling.temperature);
  const std::vector<bool> keep = kept(scaled, sampling);
  for (size_t i = 0; i < scaled.size(); ++i) scaled[i] = keep[i] ? std::exp(scaled[i]) : 0;
  std::partial_sum(scaled.begin(), scaled.end(), scaled.begin());
  // Up to the last sum: so no token of probability 0 is taken.
  return std::upper_bound(scaled.begin(), scaled.end() - 1, uniform * scaled.back()) - scaled.begin();
}

}  // namespace mobizo::trainer
