#include "logistic.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace mobizo::trainer {
namespace {

using Vector = std::vector<double>;

constexpr int kPatience = 3;                      // ridges without a lower validation loss
constexpr int kNewtonSteps = 100, kInner = 1000;  // at most; a few and some dozens are usual
constexpr double kSlope = 1e-10;                  // the largest that is left, in units of the states' root mean square

// In eight sums, which a compiler may compute side by side.
template <typename A, typename B>
double dot(const A* a, const B* b, int64_t n) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; ++j) sums[j] += double{a[i + j]} * double{b[i + j]};
  for (; i < n; ++i) sums[0] += double{a[i]} * double{b[i]};
  return std::accumulate(sums, sums + 8, 0.0);
}

double dot(const Vector& a, const Vector& b) { return dot(a.data(), b.data(), static_cast<int64_t>(a.size())); }

double largest(const Vector& values) {
  double most = 0;
  for (const double value : values) most = std::max(most, std::abs(value));
  return most;
}

double mean_square(const std::vector<float>& values) {
  return dot(values.data(), values.data(), static_cast<int64_t>(values.size())) / static_cast<double>(values.size());
}

// By what to multiply each hidden value, so that all spread alike: some are a hundred times others, and a penalty on all the
// same would leave only these to be read. One that is the same in all rows has no spread.
Vector scales_of(const States& states) {
  const size_t width = static_cast<size_t>(states.width), rows = static_cast<size_t>(states.rows);
  Vector means(width), scales(width);
  for (size_t i = 0; i < states.hidden.size(); ++i) means[i % width] += double{states.hidden[i]} / static_cast<double>(rows);
  for (size_t i = 0; i < states.hidden.size(); ++i) {
    const double off = double{states.hidden[i]} - means[i % width];
    scales[i % width] += off * off / static_cast<double>(rows);
  }
  const double least = 1e-6 * std::sqrt(largest(scales));
  for (double& scale : scales) scale = 1 / std::max({std::sqrt(scale), least, std::numeric_limits<double>::min()});
  return scales;
}

States scaled(States states, const Vector& scales) {
  for (size_t i = 0; i < states.hidden.size(); ++i)
    states.hidden[i] = static_cast<float>(double{states.hidden[i]} * scales[i % scales.size()]);
  return states;
}

// The loss on some rows, of sum 1, and its derivatives at the point of the last call of loss().
class Problem {
 public:
  Problem(const States& states, const AfterHead& after) : s_(states), after_(after), counts_(size(states.classes)) {
    for (const int32_t label : s_.labels) ++counts_[size(label)];
    chances_.resize(size(s_.rows * s_.classes));
    slopes_.resize(chances_.size());
  }

  // Mean cross-entropy with `added` on the rows of the head.
  double loss(const Vector& added) {
    double sum = 0;
    for (int64_t row = 0; row < s_.rows; ++row) {
      double *chances = &chances_[size(row * s_.classes)], *slopes = &slopes_[size(row * s_.classes)], most = -HUGE_VAL;
      for (int64_t c = 0; c < s_.classes; ++c) {
        const double x =
            double{s_.outputs[size(row * s_.classes + c)]} + dot(hidden(row), &added[size(c * s_.width)], s_.width);
        const double tanh = after_.soft_cap > 0 ? std::tanh(after_.scale * x / after_.soft_cap) : 0;
        chances[c] = after_.soft_cap > 0 ? after_.soft_cap * tanh : after_.scale * x;
        slopes[c] = after_.scale * (1 - tanh * tanh);
        most = std::max(most, chances[c]);
      }
      double total = 0;
      const double wanted = chances[s_.labels[size(row)]];
      for (int64_t c = 0; c < s_.classes; ++c) total += chances[c] = std::exp(chances[c] - most);
      for (int64_t c = 0; c < s_.classes; ++c) chances[c] /= total;
      sum += weight(row) * (std::log(total) + most - wanted);
    }
    return sum;
  }

  Vector gradient() const {
    return sum_of([&](int64_t row, double* parts) {
      for (int64_t c = 0; c < s_.classes; ++c)
        parts[c] = weight(row) * (chance(row, c) - (c == s_.labels[size(row)])) * slope(row, c);
    });
  }

  // The product of `v` with the Gauss-Newton matrix: the Hessian but for the curvature of the cap, and never indefinite.
  Vector curvature_times(const Vector& v) const {
    return sum_of([&](int64_t row, double* parts) {
      double mean = 0;
      for (int64_t c = 0; c < s_.classes; ++c) {
        parts[c] = slope(row, c) * dot(hidden(row), &v[size(c * s_.width)], s_.width);
        mean += chance(row, c) * parts[c];
      }
      for (int64_t c = 0; c < s_.classes; ++c) parts[c] = weight(row) * chance(row, c) * slope(row, c) * (parts[c] - mean);
    });
  }

  // The diagonal of that matrix.
  Vector curvature() const {
    Vector sum(size(s_.classes * s_.width));
    for (int64_t row = 0; row < s_.rows; ++row)
      for (int64_t c = 0; c < s_.classes; ++c) {
        const double part = weight(row) * chance(row, c) * (1 - chance(row, c)) * slope(row, c) * slope(row, c);
        for (int64_t k = 0; k < s_.width; ++k)
          sum[size(c * s_.width + k)] += part * double{hidden(row)[k]} * double{hidden(row)[k]};
      }
    return sum;
  }

 private:
  static size_t size(int64_t n) { return static_cast<size_t>(n); }
  const float* hidden(int64_t row) const { return &s_.hidden[size(row * s_.width)]; }
  double chance(int64_t row, int64_t c) const { return chances_[size(row * s_.classes + c)]; }
  double slope(int64_t row, int64_t c) const { return slopes_[size(row * s_.classes + c)]; }
  double weight(int64_t row) const { return 1 / (static_cast<double>(s_.classes) * counts_[size(s_.labels[size(row)])]); }

  // Over the rows, `parts` [classes] of each times its hidden state.
  template <typename Parts>
  Vector sum_of(Parts parts_of) const {
    Vector sum(size(s_.classes * s_.width)), parts(size(s_.classes));
    for (int64_t row = 0; row < s_.rows; ++row) {
      parts_of(row, parts.data());
      for (int64_t c = 0; c < s_.classes; ++c) {
        double* out = &sum[size(c * s_.width)];
        const float* in = hidden(row);
        for (int64_t k = 0; k < s_.width; ++k) out[k] += parts[size(c)] * double{in[k]};
      }
    }
    return sum;
  }

  const States& s_;
  AfterHead after_;
  Vector counts_, chances_, slopes_;  // chances: the softmax [rows, classes]; slopes: of the finished logits, of the same shape
};

// -gradient divided by the curvature and the ridge, to `accuracy`, by conjugate gradients under the diagonal.
Vector newton_step(const Problem& problem, const Vector& gradient, double ridge, double accuracy) {
  const size_t n = gradient.size();
  const Vector diagonal = problem.curvature();
  Vector step(n), left(n), scaled(n);
  for (size_t i = 0; i < n; ++i) left[i] = -gradient[i], scaled[i] = left[i] / (diagonal[i] + ridge);
  Vector direction = scaled;
  double size = dot(left, scaled);
  const double enough = accuracy * accuracy * size;
  for (int inner = 0; inner < kInner && size > enough; ++inner) {
    Vector product = problem.curvature_times(direction);
    for (size_t i = 0; i < n; ++i) product[i] += ridge * direction[i];
    const double by = size / dot(direction, product);
    for (size_t i = 0; i < n; ++i) {
      step[i] += by * direction[i];
      left[i] -= by * product[i];
      scaled[i] = left[i] / (diagonal[i] + ridge);
    }
    const double before = std::exchange(size, dot(left, scaled));
    for (size_t i = 0; i < n; ++i) direction[i] = scaled[i] + size / before * direction[i];
  }
  return step;
}

// What minimises the loss and ridge / 2 times the squares of what is added, by Newton's method from `added`.
Vector solve(const States& states, const AfterHead& after, double ridge, Vector added) {
  Problem problem(states, after);
  const auto total = [&](const Vector& at) { return problem.loss(at) + ridge / 2 * dot(at, at); };
  const double enough = kSlope * std::sqrt(mean_square(states.hidden));
  double value = total(added), first = 0;
  for (int step = 0; step < kNewtonSteps; ++step) {
    Vector gradient = problem.gradient();
    for (size_t i = 0; i < added.size(); ++i) gradient[i] += ridge * added[i];
    const double most = largest(gradient);
    if (!(most > enough)) break;
    if (first == 0) first = most;
    const Vector by = newton_step(problem, gradient, ridge, std::min(0.1, std::sqrt(most / first)));
    const double falls = dot(gradient, by), before = value;
    Vector tried(added.size());
    double length = 1;
    for (;; length /= 2) {
      for (size_t i = 0; i < added.size(); ++i) tried[i] = added[i] + length * by[i];
      value = total(tried);
      // Beside the optimum the two differ by less than their last bits.
      if (value <= before + 1e-4 * length * falls + 1e-15 * std::abs(before) || length < 1e-9) break;
    }
    if (length < 1e-9) break;
    added = tried;
  }
  return added;
}

}  // namespace

Regression regress(const States& seen, const States& held_out_states, const AfterHead& after) {
  const Vector scales = scales_of(seen);
  const States train = scaled(seen, scales), validation = scaled(held_out_states, scales);
  const double scale = mean_square(train.hidden);
  Problem held_out(validation, after);
  Regression found;
  found.added.resize(static_cast<size_t>(train.classes * train.width));
  Vector added = found.added;
  double lowest = held_out.loss(added);
  found.losses.emplace_back(std::nullopt, lowest);
  int worse = 0;
  for (int power = 2; power >= -8 && worse < kPatience; --power) {
    const double ridge = std::pow(10.0, power / 2.0);
    added = solve(train, after, ridge * scale, added);
    const double loss = held_out.loss(added);
    found.losses.emplace_back(ridge, loss);
    ++worse;
    if (loss < lowest) {
      found.ridge = ridge;
      found.added = added;
      lowest = loss;
      worse = 0;
    }
  }
  for (size_t i = 0; i < found.added.size(); ++i) found.added[i] *= scales[i % scales.size()];
  return found;
}

// One-sided Jacobi: rows are turned pairwise until they are orthogonal, which is exact for small ones, too.
Factors factors(std::vector<double> added, int64_t classes, int64_t width) {
  const auto at = [](std::vector<double>& matrix, int64_t row, int64_t columns) {
    return &matrix[static_cast<size_t>(row * columns)];
  };
  std::vector<double> turned(static_cast<size_t>(classes * classes));  // by which `added` has been multiplied
  for (int64_t c = 0; c < classes; ++c) at(turned, c, classes)[c] = 1;
  constexpr int kSweeps = 40;
  bool turns = true;
  for (int sweep = 0; sweep < kSweeps && turns; ++sweep) {
    turns = false;
    for (int64_t p = 0; p < classes; ++p)
      for (int64_t q = p + 1; q < classes; ++q) {
        double *first = at(added, p, width), *second = at(added, q, width);
        const double a = dot(first, first, width), b = dot(second, second, width), c = dot(first, second, width);
        if (std::abs(c) <= 1e-15 * std::sqrt(a * b)) continue;
        turns = true;
        const double half = (b - a) / (2 * c), tan = std::copysign(1.0, half) / (std::abs(half) + std::sqrt(1 + half * half));
        const double cos = 1 / std::sqrt(1 + tan * tan), sin = cos * tan;
        const auto turn = [&](double* x, double* y, int64_t n) {
          for (int64_t i = 0; i < n; ++i) {
            const double before = x[i];
            x[i] = cos * before - sin * y[i];
            y[i] = sin * before + cos * y[i];
          }
        };
        turn(first, second, width);
        turn(at(turned, p, classes), at(turned, q, classes), classes);
      }
  }
  std::vector<std::pair<double, int64_t>> sizes;
  for (int64_t c = 0; c < classes; ++c) sizes.emplace_back(std::sqrt(dot(at(added, c, width), at(added, c, width), width)), c);
  std::stable_sort(sizes.begin(), sizes.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  while (!sizes.empty() && !(sizes.back().first > 1e-7 * sizes.front().first)) sizes.pop_back();
  Factors made{static_cast<int64_t>(sizes.size()), {}, {}};
  for (auto& [size, row] : sizes) {
    const double* direction = at(added, row, width);
    const double* largest =
        std::max_element(direction, direction + width, [](double a, double b) { return std::abs(a) < std::abs(b); });
    size = std::copysign(size, *largest);
  }
  for (const auto& [size, row] : sizes)
    for (int64_t k = 0; k < width; ++k) made.directions.push_back(static_cast<float>(at(added, row, width)[k] / size));
  for (int64_t c = 0; c < classes; ++c)
    for (const auto& [size, row] : sizes) made.words.push_back(static_cast<float>(at(turned, row, classes)[c] * size));
  return made;
}

}  // namespace mobizo::trainer
