#include "readout.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <set>

#include "../files/errors.h"
#include "logistic.h"

namespace mobizo::trainer {
namespace {

void check_rows(const Split& split, const std::vector<int64_t>& rows, int64_t classes) {
  std::set<int64_t> labels, expected;
  for (const int64_t row : rows) labels.insert(split.labels[static_cast<size_t>(row)]);
  for (int64_t label = 0; label < classes; ++label) expected.insert(label);
  if (labels != expected)
    fail(split.name, " needs rows of every label from 0 to ", classes - 1, ", got ",
         Json::list(std::vector<int64_t>(labels.begin(), labels.end())).dump());
  for (const int64_t row : rows)
    if (const int32_t targets = split.targets[static_cast<size_t>(row)]; targets != 1)
      fail(split.name, " needs rows whose answer is one token, got one of ", targets);
}

// Rows of like length are forwarded together: little is padded.
States states_of(Program& program, const Split& split, std::vector<int64_t> rows, const std::function<void()>& before_forward) {
  const Description& d = program.description();
  const int64_t positions = d.targets_per_row, width = d.head->shape[1], classes = d.classes(), most = d.evaluation_rows;
  std::stable_sort(rows.begin(), rows.end(), [&](int64_t a, int64_t b) { return split.length(a) < split.length(b); });
  States states{static_cast<int64_t>(rows.size()), width, classes, {}, {}, {}};
  for (int64_t first = 0; first < states.rows; first += most) {
    const int64_t count = std::min(most, states.rows - first);
    std::vector<int64_t> batch_rows(rows.begin() + first, rows.begin() + first + count);
    batch_rows.resize(static_cast<size_t>(most), batch_rows.back());
    before_forward();
    const HeadStates found = program.head_states(make_batch(split, batch_rows, d));
    for (int64_t i = 0; i < count; ++i) {  // a row has one target, which comes first of its positions
      const auto hidden = found.hidden.begin() + i * positions * width,
                 outputs = found.outputs.begin() + i * positions * classes;
      states.hidden.insert(states.hidden.end(), hidden, hidden + width);
      states.outputs.insert(states.outputs.end(), outputs, outputs + classes);
      states.labels.push_back(split.labels[static_cast<size_t>(batch_rows[static_cast<size_t>(i)])]);
    }
  }
  for (const std::vector<float>* values : {&states.hidden, &states.outputs})
    for (const float value : *values)
      if (!std::isfinite(value)) fail(split.name, " has rows whose last hidden states are not finite");
  return states;
}

}  // namespace

Readout read_out(Program& program, const Dataset& dataset, int64_t rows, int64_t validation_rows,
                 const std::function<void()>& before_forward) {
  const auto started = std::chrono::steady_clock::now();
  const Description& d = program.description();
  if (rows < 1) fail("readout_rows must be at least 1, got ", rows);
  if (validation_rows < 1) fail("validation_rows must be at least 1, got ", validation_rows);
  if (!d.head)
    fail(program.path(),
         ": the program cannot hold a readout: its softmax is over the whole vocabulary, its LM head is tuned, ",
         "or it was exported by an earlier version");
  if (program.adapter().head) fail("the LM head has an adapter already, that of ", d.head->name);
  dataset.check(d);
  const Split &train = dataset.split("train"), &validation = dataset.split("validation");
  if (dataset.in_turn().empty())
    fail(dataset.path(),
         ": the data set does not say which rows to read out (train.in_turn); make it again with mobizo tokenize");
  const auto& in_turn = dataset.in_turn();
  const std::vector<int64_t> made_of(in_turn.begin(), in_turn.begin() + std::min(rows, static_cast<int64_t>(in_turn.size())));
  std::vector<int64_t> held_out(static_cast<size_t>(std::min(validation_rows, validation.rows())));
  std::iota(held_out.begin(), held_out.end(), 0);
  check_rows(train, made_of, d.classes());
  check_rows(validation, held_out, d.classes());

  const States seen = states_of(program, train, made_of, before_forward),
               unseen = states_of(program, validation, held_out, before_forward);
  const Regression found = regress(seen, unseen, {d.head->scale, d.head->soft_cap});
  Readout result{found.ridge, 0, found.losses, seen.rows, 0};
  if (found.ridge) {
    Factors made = factors(found.added, seen.classes, seen.width);
    result.rank = made.rank;
    program.set_head(HeadAdapter{made.rank, std::move(made.directions), std::move(made.words)});
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return result;
}

}  // namespace mobizo::trainer
