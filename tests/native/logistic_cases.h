// The logistic regression of a readout against loops that spell its objective out: where the slope is nothing, there is the
// one optimum of a convex function. Comparisons with scikit-learn are in tests/executorch/test_logistic.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>

#include "../../executorch_ops/trainer/loop/logistic.h"
#include "trainer_harness.h"

namespace mobizo::trainer {

// Rows whose labels follow from their hidden states, but for some chance; the first rows have one label each.
inline States random_states(int64_t rows, int64_t width, int64_t classes, std::mt19937& random) {
  const auto number = [&] { return static_cast<float>(static_cast<double>(random()) / 2147483648.0 - 1); };
  States s{rows, width, classes, {}, {}, {}};
  for (int64_t i = 0; i < rows * width; ++i) s.hidden.push_back(number());
  for (int64_t i = 0; i < rows * classes; ++i) s.outputs.push_back(number() / 4);
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<float> scores;
    for (int64_t c = 0; c < classes; ++c)
      scores.push_back(2 * s.hidden[static_cast<size_t>(row * width + c % width)] * (c < width ? 1.0f : -1.0f) + number());
    const auto label = std::max_element(scores.begin(), scores.end()) - scores.begin();
    s.labels.push_back(static_cast<int32_t>(row < classes ? row : label));
  }
  return s;
}

struct Objective {
  double loss = 0;
  std::vector<double> slope;  // [classes, width]
};

// Mean cross-entropy with `added` on the rows of the head, the rows of each class weighing the same in all.
inline Objective objective(const States& s, const std::vector<double>& added, double scale) {
  Objective found;
  found.slope.resize(added.size());
  for (int64_t row = 0; row < s.rows; ++row) {
    const auto at = static_cast<size_t>(row);
    const auto alike = static_cast<double>(std::count(s.labels.begin(), s.labels.end(), s.labels[at]));
    const double weight = 1 / (alike * static_cast<double>(s.classes));
    std::vector<double> logits;
    double total = 0;
    for (size_t c = 0; c < static_cast<size_t>(s.classes); ++c) {
      double x = s.outputs[at * static_cast<size_t>(s.classes) + c];
      for (size_t k = 0; k < static_cast<size_t>(s.width); ++k)
        x += added[c * static_cast<size_t>(s.width) + k] * s.hidden[at * static_cast<size_t>(s.width) + k];
      logits.push_back(scale * x);
      total += std::exp(scale * x);
    }
    const auto label = static_cast<size_t>(s.labels[at]);
    found.loss += weight * (std::log(total) - logits[label]);
    for (size_t c = 0; c < logits.size(); ++c)
      for (size_t k = 0; k < static_cast<size_t>(s.width); ++k)
        found.slope[c * static_cast<size_t>(s.width) + k] +=
            weight * scale * (std::exp(logits[c]) / total - (c == label)) * s.hidden[at * static_cast<size_t>(s.width) + k];
  }
  return found;
}

// The standard deviation of each hidden value over the rows.
inline std::vector<double> spreads(const States& s) {
  const auto width = static_cast<size_t>(s.width), rows = static_cast<size_t>(s.rows);
  std::vector<double> found(width);
  for (size_t k = 0; k < width; ++k) {
    double sum = 0, squares = 0;
    for (size_t row = 0; row < rows; ++row) sum += s.hidden[row * width + k];
    const double mean = sum / static_cast<double>(rows);
    for (size_t row = 0; row < rows; ++row) squares += std::pow(s.hidden[row * width + k] - mean, 2);
    found[k] = std::sqrt(squares / static_cast<double>(rows));
  }
  return found;
}

// How far words * directions is from `added`, and the directions from orthonormal ones.
inline std::string factors_error(const Factors& made, const std::vector<double>& added, int64_t classes, int64_t width) {
  double product = 0, angle = 0;
  for (int64_t c = 0; c < classes; ++c)
    for (int64_t k = 0; k < width; ++k) {
      double sum = 0;
      for (int64_t r = 0; r < made.rank; ++r)
        sum += double{made.words[static_cast<size_t>(c * made.rank + r)]} * made.directions[static_cast<size_t>(r * width + k)];
      product = std::max(product, std::abs(sum - added[static_cast<size_t>(c * width + k)]));
    }
  for (int64_t a = 0; a < made.rank; ++a)
    for (int64_t b = 0; b < made.rank; ++b) {
      double sum = a == b ? -1 : 0;
      for (int64_t k = 0; k < width; ++k)
        sum +=
            double{made.directions[static_cast<size_t>(a * width + k)]} * made.directions[static_cast<size_t>(b * width + k)];
      angle = std::max(angle, std::abs(sum));
    }
  return product < 1e-5 && angle < 1e-5 ? "" : text("product off by ", product, ", angles by ", angle);
}

inline void logistic_cases(Report& report) {
  std::mt19937 random(7);
  struct Sizes {
    int64_t rows, width, classes;
    double scale;
  };
  for (const auto& [rows, width, classes, scale] :
       {Sizes{60, 5, 2, 1}, Sizes{75, 9, 3, 0.25}, Sizes{41, 17, 4, 1}, Sizes{33, 1, 2, 1}}) {
    const std::string name = text("regression of ", rows, " rows, ", width, " wide, ", classes, " classes, scale ", scale);
    const States seen = random_states(rows, width, classes, random), unseen = random_states(rows + 9, width, classes, random);
    const Regression found = regress(seen, unseen, {scale, 0});
    const std::vector<double> nothing(static_cast<size_t>(classes * width));
    double best = INFINITY;
    for (const auto& [ridge, loss] : found.losses) best = std::min(best, loss);
    const double before = objective(unseen, nothing, scale).loss, after = objective(unseen, found.added, scale).loss;
    report.check(name + ", loss before", std::abs(found.losses[0].second - before) < 1e-12 ? "" : text("off by ", before));
    report.check(name + ", loss after", std::abs(best - after) < 1e-6 && after < before ? "" : text(best, " is ", after));
    if (!found.ridge) {
      report.check(name, "no ridge was found");
      continue;
    }
    // The penalty is on what is added to states that all spread alike, which are rounded once.
    const std::vector<double> spread = spreads(seen);
    double square = 0, left = 0, largest = 0;
    for (size_t i = 0; i < seen.hidden.size(); ++i) {
      const double value = seen.hidden[i] / spread[i % spread.size()];
      square += value * value / static_cast<double>(seen.hidden.size());
    }
    const Objective at = objective(seen, found.added, scale), start = objective(seen, nothing, scale);
    for (size_t i = 0; i < at.slope.size(); ++i) {
      const double by = spread[i % spread.size()];
      left = std::max(left, std::abs(at.slope[i] / by + *found.ridge * square * found.added[i] * by));
      largest = std::max(largest, std::abs(start.slope[i] / by));
    }
    report.check(name + ", slope", left < 1e-5 * largest ? "" : text(left, " of ", largest, " is left"));
    report.check(name + ", factors", factors_error(factors(found.added, classes, width), found.added, classes, width));
  }
  States seen = random_states(80, 6, 3, random), against = seen;
  for (float& value : against.hidden) value = -value;
  const Regression none = regress(seen, against, {});
  report.check("what validates worse is left out",
               !none.ridge && std::all_of(none.added.begin(), none.added.end(), [](double x) { return x == 0; })
                   ? ""
                   : "something was added");
  check_equal(report, "factors of nothing", text(factors(std::vector<double>(18), 3, 6).rank), "0");
}

}  // namespace mobizo::trainer
