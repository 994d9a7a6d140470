#include "evaluation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

namespace mobizo::trainer {
namespace {

// -log softmax(scores)[target].
double cross_entropy(const float* scores, int64_t classes, int64_t target) {
  const double largest = *std::max_element(scores, scores + classes);
  double sum = 0;
  for (int64_t c = 0; c < classes; ++c) sum += std::exp(scores[c] - largest);
  return std::log(sum) + largest - scores[target];
}

int64_t class_of(int64_t token, const Description& description) {
  if (!description.candidate_tokens) return token;
  const std::vector<int64_t>& tokens = *description.candidate_tokens;
  return std::find(tokens.begin(), tokens.end(), token) - tokens.begin();
}

struct RowResult {
  double loss = 0;  // sum over the row's targets
  bool right = false;
};

double balanced_accuracy(const Split& split, const std::vector<RowResult>& results, const Description& description) {
  std::map<int32_t, std::pair<int64_t, int64_t>> counts;  // right ones and all
  for (size_t row = 0; row < results.size(); ++row) {
    if (split.labels[row] < 0) return std::numeric_limits<double>::quiet_NaN();
    auto& [right, all] = counts[split.labels[row]];
    right += results[row].right;
    ++all;
  }
  if (description.candidate_tokens && counts.size() < description.candidate_tokens->size())
    return std::numeric_limits<double>::quiet_NaN();
  double sum = 0;
  for (const auto& [label, count] : counts) sum += static_cast<double>(count.first) / static_cast<double>(count.second);
  return sum / static_cast<double>(counts.size());
}

}  // namespace

Evaluation evaluate(Program& program, const Split& split, int64_t rows, bool keep_scores,
                    const std::function<void()>& before_forward) {
  const Description& description = program.description();
  const int64_t classes = description.classes(), most = description.evaluation_rows;
  rows = rows == 0 ? split.rows() : std::min(rows, split.rows());
  Evaluation evaluation{rows, classes, 0, 0, 0, {}, {}};
  if (keep_scores) evaluation.scores.resize(static_cast<size_t>(rows * classes));
  std::vector<int64_t> by_length(static_cast<size_t>(rows));  // rows of like length side by side: little is padded
  std::iota(by_length.begin(), by_length.end(), 0);
  std::stable_sort(by_length.begin(), by_length.end(), [&](int64_t a, int64_t b) { return split.length(a) < split.length(b); });
  std::vector<RowResult> results(static_cast<size_t>(rows));
  int64_t tokens = 0;
  for (int64_t first = 0; first < rows; first += most) {
    const int64_t count = std::min(most, rows - first);
    std::vector<int64_t> batch_rows(by_length.begin() + first, by_length.begin() + first + count);
    batch_rows.resize(static_cast<size_t>(most), batch_rows.back());
    before_forward();
    const std::vector<float> logits = program.evaluate(make_batch(split, batch_rows, description));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = batch_rows[static_cast<size_t>(i)], targets = split.targets[static_cast<size_t>(row)];
      const float* scores = &logits[static_cast<size_t>(i * description.targets_per_row * classes)];
      RowResult& result = results[static_cast<size_t>(row)];
      tokens += targets;
      for (int64_t k = 0; k < targets; ++k)
        result.loss += cross_entropy(scores + k * classes, classes, class_of(split.token(row, k - targets), description));
      const float* last = scores + (targets - 1) * classes;
      result.right = std::max_element(last, last + classes) - last == class_of(split.token(row, -1), description);
      if (keep_scores) std::copy_n(last, classes, &evaluation.scores[static_cast<size_t>(row * classes)]);
    }
  }
  int64_t right = 0;
  for (const RowResult& result : results) {
    evaluation.loss += result.loss;
    evaluation.row_losses.push_back(result.loss);
    right += result.right;
  }
  evaluation.loss /= static_cast<double>(tokens);
  evaluation.accuracy = static_cast<double>(right) / static_cast<double>(rows);
  evaluation.balanced_accuracy = balanced_accuracy(split, results, description);
  return evaluation;
}

}  // namespace mobizo::trainer
