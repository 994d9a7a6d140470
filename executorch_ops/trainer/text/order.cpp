#include "order.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "../files/errors.h"
#include "python_random.h"

namespace mobizo::trainer {
namespace {

using Numbers = std::vector<int32_t>;

class Epochs {
 public:
  Epochs(std::vector<Numbers> classes, const std::vector<Row>& rows, size_t per_class, size_t batch, uint64_t seed)
      : classes_(std::move(classes)), rows_(rows), per_class_(per_class), batch_(batch), random_(seed) {}

  // The batches of the next epoch, in their order.
  std::vector<Numbers> next() {
    std::vector<Numbers> alike, rest;
    std::vector<Numbers> chosen;
    for (const Numbers& rows : random_.sample(classes_, classes_.size())) {
      chosen.push_back(random_.sample(rows, per_class_));
      std::stable_sort(chosen.back().begin(), chosen.back().end(), [&](int32_t a, int32_t b) { return length(a) < length(b); });
    }
    take_alike(chosen, alike, rest);
    const Numbers others = in_turn(rest);
    const size_t start = random_.below(others.size() % batch_ + 1), last = start + others.size() / batch_ * batch_;
    Numbers ordered = in_turn(alike);
    ordered.insert(ordered.end(), others.begin() + static_cast<std::ptrdiff_t>(start),
                   others.begin() + static_cast<std::ptrdiff_t>(last));
    std::vector<Numbers> batches;
    for (size_t first = 0; first < ordered.size(); first += batch_) {
      const auto begin = ordered.begin() + static_cast<std::ptrdiff_t>(first);
      batches.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(std::min(batch_, ordered.size() - first)));
    }
    random_.shuffle(batches);
    return batches;
  }

 private:
  size_t length(int32_t row) const { return rows_[static_cast<size_t>(row)].tokens.size(); }

  // Takes as many rows of each length as all classes have, in multiples of what fills batches.
  void take_alike(const std::vector<Numbers>& classes, std::vector<Numbers>& alike, std::vector<Numbers>& rest) const {
    const size_t whole = std::lcm(batch_, classes.size()) / classes.size();
    std::vector<std::map<size_t, size_t>> counts(classes.size());
    for (size_t i = 0; i < classes.size(); ++i)
      for (const int32_t row : classes[i]) ++counts[i][length(row)];
    std::map<size_t, size_t> common = counts[0];
    for (auto& [size, count] : common) {
      for (const auto& other : counts) {
        const auto found = other.find(size);
        count = std::min(count, found == other.end() ? 0 : found->second);
      }
      // NOLINTNEXTLINE(clang-analyzer-core.DivideZero): a batch has rows, and they have a class
      count = count / whole * whole;
    }
    for (const Numbers& rows : classes) {
      Numbers taken, left;
      std::map<size_t, size_t> seen;
      for (const int32_t row : rows) {
        const auto found = common.find(length(row));
        const size_t most = found == common.end() ? 0 : found->second;
        (seen[length(row)]++ < most ? taken : left).push_back(row);
      }
      alike.push_back(std::move(taken));
      rest.push_back(std::move(left));
    }
  }

  static Numbers in_turn(const std::vector<Numbers>& classes) {
    Numbers ordered;
    for (size_t i = 0; i < classes[0].size(); ++i)
      for (const Numbers& rows : classes) ordered.push_back(rows[i]);
    return ordered;
  }

  std::vector<Numbers> classes_;
  const std::vector<Row>& rows_;
  size_t per_class_, batch_;
  PythonRandom random_;
};

}  // namespace

std::vector<int32_t> training_order(const std::vector<Row>& rows, int64_t batch_size, uint64_t seed, int64_t steps) {
  std::vector<Numbers> classes;  // as they come
  std::map<int64_t, size_t> known;
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto [found, fresh] = known.emplace(rows[i].label, classes.size());
    if (fresh) classes.emplace_back();
    classes[found->second].push_back(static_cast<int32_t>(i));
  }
  size_t per_class = rows.size();
  for (const Numbers& numbers : classes) per_class = std::min(per_class, numbers.size());
  const auto most = static_cast<int64_t>(per_class * classes.size());
  if (batch_size < 1 || batch_size > most)
    fail("batch_size: expected 1 to ", most, ", the rows of one balanced epoch, got ", batch_size);
  Epochs epochs(std::move(classes), rows, per_class, static_cast<size_t>(batch_size), seed);
  Numbers order;
  while (steps > 0)
    for (const Numbers& batch : epochs.next()) {
      if (steps-- <= 0) break;
      order.insert(order.end(), batch.begin(), batch.end());
    }
  return order;
}

std::vector<int32_t> numbers_in_turn(const std::vector<Row>& rows, uint64_t seed) {
  Numbers all(rows.size());
  std::iota(all.begin(), all.end(), 0);
  std::map<int64_t, Numbers> by_label;
  for (const int32_t number : PythonRandom(seed).sample(all, all.size()))
    by_label[rows[static_cast<size_t>(number)].label].push_back(number);
  Numbers turns;
  for (size_t i = 0; turns.size() < rows.size(); ++i)
    for (const auto& [label, numbers] : by_label)
      if (i < numbers.size()) turns.push_back(numbers[i]);
  return turns;
}

}  // namespace mobizo::trainer
