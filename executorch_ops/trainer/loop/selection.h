// Which of the adapters that a run validates is kept.
#pragma once

#include <vector>

namespace mobizo::trainer {

// The latest adapter that is not significantly worse than the best so far. A few hundred rows do not tell good adapters apart;
// where they do not, the later one is the better guess. Two adapters are compared row by row: what makes a row hard is hard for
// both and drops out of the standard error of their difference.
class Selection {
 public:
  static constexpr double kDeviations = 2;  // standard errors that a later adapter's loss may be above the lowest

  // Takes the losses of the validation rows, always the same rows; whether to keep this adapter.
  bool keep(const std::vector<double>& losses);
  // Whether the losses that were taken last are the lowest so far.
  bool is_lowest() const { return is_lowest_; }

 private:
  bool is_lowest_ = false;
  std::vector<double> lowest_;
};

}  // namespace mobizo::trainer
