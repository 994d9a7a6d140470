#include "trainer.h"

#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <utility>

#include "../files/errors.h"
#include "divergence.h"
#include "estimator.h"
#include "run_header.h"
#include "schedule.h"
#include "seeds.h"
#include "selection.h"
#include "shaping.h"

namespace mobizo::trainer {
namespace {

bool all_finite(const std::vector<float>& values) {
  for (const float value : values)
    if (!std::isfinite(value)) return false;
  return true;
}

// An adapter behind so many steps; empty if there was none.
struct Kept {
  int64_t step = 0;
  std::vector<std::vector<float>> lora_b;
};

class Run {
 public:
  Run(Program& program, const Dataset& dataset, const TrainOptions& options, const Observer& observer)
      : program_(program),
        dataset_(dataset),
        options_(options),
        observer_(observer),
        estimator_(program.description().estimator, program.description().queries, options.eps, options.normalize),
        schedule_(options.lr_schedule, options.lr, options.steps),
        eval_every_(options.eval_every.value_or((options.steps + 9) / 10)) {
    const bool keep_best = options.keep == "best";
    if (!keep_best && options.keep != "last") fail("keep must be best or last, got '", options.keep, "'");
    if (eval_every_ < 0) fail("eval_every must be at least 0, got ", eval_every_);
    if (keep_best && eval_every_ == 0) fail("keep must be last if eval_every is 0");
    if (options.validation_rows < 1) fail("validation_rows must be at least 1, got ", options.validation_rows);
    if (options.sync_every < 1) fail("sync_every must be at least 1, got ", options.sync_every);
    check_shaping(options.reward_shaping);
    dataset.check(program.description());
    training_ = &dataset.split("train");
    if (eval_every_ > 0) validation_ = &dataset.split("validation");
    if (options.objective != nullptr) options.objective->check(*training_, training_->rows());
    if (objective_validates() && validation_ != nullptr) options.objective->check(*validation_, options.validation_rows);
    warn_of_repeats();
    open_journal();
  }

  TrainResult make() {
    observer_.on_begin();
    program_.reset_optimizer();
    try {
      validate();
      unsteady_ = false;  // whatever the untuned model is like
      for (const StepRecord& record : recorded()) {
        repeat(record);
        validate();
      }
      go_on();
    } catch (...) {
      apply_pending();
      throw;
    }
    apply_pending();
    // Few rows don't tell the last adapter of a run that was lost to be worse than the best.
    const Kept& kept = ran_away() ? lowest_ : kept_;
    if (!kept.lora_b.empty()) program_.set_lora_b(kept.lora_b);
    result_.best_step = kept.lora_b.empty() ? result_.steps : kept.step;
    result_.stopped = result_.steps < options_.steps;
    return result_;
  }

 private:
  // The steps that are yet to be made. Without its journal the run ends here, as if its loss had run away.
  void go_on() {
    try {
      while (!done()) {
        make_step();
        validate();
      }
      if (journal_) journal_->sync();
    } catch (const JournalLost& lost) {
      result_.lost = lost.what();
      validate();
    }
  }

  // A data set is laid out for some number of steps, and a longer run begins it again.
  void warn_of_repeats() const {
    const int64_t batch_size = program_.description().batch_size;
    const int64_t batches = (static_cast<int64_t>(dataset_.order().size()) + batch_size - 1) / batch_size;
    if (options_.steps <= batches) return;
    const int64_t times = options_.steps / batches;
    const std::string most = options_.steps % batches == 0 ? "" : message(" or ", times + 1);
    observer_.on_warning(message("the data set has the batches of ", batches, " steps: in a run of ", options_.steps,
                                 " each is used ", times, most, " times; tokenize for ", options_.steps,
                                 " steps to have as many"));
  }

  void open_journal() {
    if (options_.journal.empty()) {
      if (options_.resume) fail("resume needs a journal");
      return;
    }
    const Json header = journal_header(program_, dataset_, options_);
    journal_ = std::make_unique<JournalWriter>(options_.journal, header, options_.resume, options_.sync_every);
    if (!journal_->locked())
      observer_.on_warning(options_.journal + " lies on a file system without locks: let no other run write it");
    result_.resumed_steps = static_cast<int64_t>(journal_->journal().records.size());
    if (journal_->dropped())
      observer_.on_warning(message(options_.journal, ": the record of step ", result_.resumed_steps,
                                   ", the last one, is damaged; it is dropped, and the step is made again"));
    if (result_.resumed_steps > options_.steps)
      fail(options_.journal, ": the journal has ", result_.resumed_steps, " steps, more than ", options_.steps);
  }

  std::vector<StepRecord> recorded() const { return journal_ ? journal_->journal().records : std::vector<StepRecord>{}; }

  // A step that the journal has. Its validation is made again: all of them say which adapter is the best, and they are the
  // same.
  void repeat(const StepRecord& record) {
    take(record);
    apply_pending();
  }

  // Of the groups, behind the update that is pending.
  TrainStep losses_of(const std::vector<int64_t>& rows, const std::vector<int64_t>& seeds) {
    const std::vector<int64_t> group_seeds = estimator_.seeds(seeds);
    const std::vector<float> coeffs = estimator_.coeffs();
    if (options_.objective == nullptr)
      return program_.train_step(make_batch(*training_, rows, program_.description()), group_seeds, coeffs,
                                 std::exchange(pending_, std::nullopt));
    const float update_norm = apply_pending();
    const int64_t step = result_.steps;
    return {options_.objective->losses(program_, *training_, rows, step, {group_seeds, coeffs},
                                       [&] { observer_.before_forward(step); }),
            update_norm};
  }

  void make_step() {
    const auto started = std::chrono::steady_clock::now();
    const int64_t step = result_.steps;
    const std::vector<int64_t> seeds = step_seeds(step);
    const std::vector<int64_t> rows = dataset_.training_rows(step, program_.description().batch_size);
    const TrainStep forward = losses_of(rows, seeds);

    StepReport report{};
    report.step = step;
    report.loss = static_cast<float>(estimator_.loss(forward.losses));  // as a journal has it
    report.losses = forward.losses;
    report.projected_gradients = estimator_.projected_gradients(shaped(forward.losses, options_.reward_shaping));
    report.update_norm = forward.update_norm;
    report.lr = schedule_.lr(step);
    const StepRecord record = record_of(report);
    if (!record.applied) {
      report.skipped = true;
      report.projected_gradients.assign(seeds.size(), std::numeric_limits<float>::quiet_NaN());
      ++result_.skipped_steps;
    }
    if (journal_) journal_->append(step, record);
    take(record);
    report.unsteady = unsteady_;
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    observer_.on_step(report);
  }

  // What the step is about to do.
  StepRecord record_of(const StepReport& report) const {
    const UpdateRule& rule = program_.description().optimizer;
    const double scale = rule.coefficient(report.lr, program_.description().queries);
    StepRecord record{true,
                      static_cast<float>(report.loss),
                      static_cast<float>(rule.rate(report.lr, updates_)),
                      static_cast<float>(rule.decay(report.lr)),
                      {}};
    for (const float gradient : report.projected_gradients)
      record.coeffs.push_back(static_cast<float>(scale * double{gradient}));
    if (all_finite(report.losses) && all_finite(record.coeffs)) return record;
    return {false, record.loss, 0, 1, std::vector<float>(record.coeffs.size())};
  }

  // The next step is this one: its update is pending from now on.
  void take(const StepRecord& record) {
    if (record.applied) {
      pending_ = Update{step_seeds(result_.steps), record.coeffs, record.rate, record.decay};
      ++updates_;
    }
    unsteady_ = guard_.observe(record.loss, record.applied);
    ++result_.steps;
  }

  bool ran_away() const { return unsteady_ && options_.stop_unsteady; }

  bool done() const { return result_.steps == options_.steps || !result_.lost.empty() || ran_away(); }

  // If it is time for it. What a stopped run has repeated last is where it ended.
  void validate() {
    const int64_t step = result_.steps;
    const bool ended = done() && step >= result_.resumed_steps;
    if (validation_ == nullptr || (step % eval_every_ != 0 && !ended)) return;
    if (!result_.evaluations.empty() && result_.evaluations.back().step == step) return;
    apply_pending();
    const auto [report, row_losses] = validation_of(step);
    result_.evaluations.push_back(report);
    if (options_.keep == "best" && selection_.keep(row_losses)) {
      kept_ = {step, program_.adapter().lora_b};
      if (selection_.is_lowest()) lowest_ = kept_;
    }
    unsteady_ |= guard_.validate(report.loss);
    observer_.on_evaluation(result_.evaluations.back());
  }

  bool objective_validates() const { return options_.objective != nullptr && options_.objective->validates(); }

  // What a validation finds, and the loss of each of its rows.
  std::pair<EvaluationReport, std::vector<double>> validation_of(int64_t step) {
    const auto before_forward = [&] { observer_.before_forward(step); };
    constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
    if (objective_validates()) {
      std::vector<double> losses = options_.objective->held_out(*validation_, options_.validation_rows, before_forward);
      const double sum = std::accumulate(losses.begin(), losses.end(), 0.0);
      const EvaluationReport report{step, sum / static_cast<double>(losses.size()), kNone, kNone};
      return {report, std::move(losses)};
    }
    Evaluation found = evaluate(program_, *validation_, options_.validation_rows, /*keep_scores=*/false, before_forward);
    return {EvaluationReport{step, found.loss, found.accuracy, found.balanced_accuracy}, std::move(found.row_losses)};
  }

  // The norm of the update, 0 if there was none.
  float apply_pending() {
    const std::optional<Update> update = std::exchange(pending_, std::nullopt);
    return update ? program_.update(*update) : 0;
  }

  std::vector<int64_t> step_seeds(int64_t step) const {
    return query_seeds(options_.run_seed, step, program_.description().queries);
  }

  Program& program_;
  const Dataset& dataset_;
  const TrainOptions& options_;
  const Observer& observer_;
  Estimator estimator_;
  Schedule schedule_;
  int64_t eval_every_;
  std::optional<Update> pending_;  // recorded, not yet applied
  Selection selection_;
  DivergenceGuard guard_;
  bool unsteady_ = false;  // after the last step
  int64_t updates_ = 0;    // steps that were not skipped
  const Split* training_ = nullptr;
  const Split* validation_ = nullptr;
  std::unique_ptr<JournalWriter> journal_;
  Kept kept_, lowest_;
  TrainResult result_{};
};

}  // namespace

TrainResult train(Program& program, const Dataset& dataset, const TrainOptions& options, const Observer& observer) {
  return Run(program, dataset, options, observer).make();
}

int64_t replay(Program& program, const std::string& path, std::optional<int64_t> until) {
  const Journal journal = read_journal(path);
  check_replayable(path, journal, program);
  const auto records = static_cast<int64_t>(journal.records.size());
  const int64_t steps = until.value_or(records);
  if (steps < 0 || steps > records) fail("until must be from 0 to ", records, ", the steps of ", path, ", got ", steps);
  program.reset_optimizer();
  for (int64_t step = 0; step < steps; ++step) {
    const StepRecord& record = journal.records[static_cast<size_t>(step)];
    if (record.applied)
      program.update({query_seeds(journal.run_seed, step, journal.queries), record.coeffs, record.rate, record.decay});
  }
  return steps;
}

}  // namespace mobizo::trainer
