// Training, readout and replay.
#include <cmath>
#include <limits>

#include "../loop/readout.h"
#include "../loop/trainer.h"
#include "../text/strings.h"
#include "handles.h"

namespace mobizo::trainer::c_interface {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

mobizo_train_options defaults() {
  const TrainOptions options;
  return {sizeof(mobizo_train_options),
          options.steps,
          options.eps,
          options.lr,
          run_defaults::lr_schedule,
          options.normalize,
          options.run_seed,
          nullptr,
          options.sync_every,
          options.resume,
          /*eval_every=*/-1,
          options.validation_rows,
          run_defaults::keep,
          options.stop_unsteady,
          /*objective=*/nullptr,
          /*reward_shaping=*/"none"};
}

mobizo_objective objective_defaults() {
  const GenerateOptions writing;
  const Sampling& sampling = writing.sampling;
  return {sizeof(mobizo_objective), nullptr,        nullptr,        nullptr,      /*name=*/"reward", writing.max_new_tokens,
          sampling.temperature,     sampling.top_k, sampling.top_p, sampling.seed};
}

bool flag(int64_t value, const char* name) {
  if (value != 0 && value != 1) fail("options.", name, " must be 0 or 1, got ", value);
  return value == 1;
}

TrainOptions checked(const mobizo_train_options& given_options) {
  TrainOptions options;
  options.steps = given_options.steps;
  options.eps = given_options.eps;
  options.lr = given_options.lr;
  options.lr_schedule = given(given_options.lr_schedule, "options.lr_schedule");
  options.normalize = flag(given_options.normalize, "normalize");
  options.run_seed = given_options.run_seed;
  if (given_options.journal != nullptr) options.journal = given_options.journal;
  options.sync_every = given_options.sync_every;
  options.resume = flag(given_options.resume, "resume");
  if (given_options.eval_every != -1) options.eval_every = given_options.eval_every;
  options.validation_rows = given_options.validation_rows;
  options.keep = given(given_options.keep, "options.keep");
  options.stop_unsteady = flag(given_options.stop_unsteady, "stop_unsteady");
  options.reward_shaping = given(given_options.reward_shaping, "options.reward_shaping");
  return options;
}

// Asks the caller how good answers are.
Reward asking(const mobizo_objective& objective, std::shared_ptr<const TokenizerFile> tokenizer) {
  return [objective, tokenizer = std::move(tokenizer)](const Tokens& prompt, const std::vector<Tokens>& answers,
                                                       const Tokens& reference) {
    const auto text = [&](const Tokens& tokens) {
      return std::string(stripped(tokenizer->tokenizer().decode(tokens, /*skip_special=*/true)));
    };
    const std::string asked = tokenizer->tokenizer().decode(prompt, /*skip_special=*/false), wanted = text(reference);
    std::vector<std::string> texts;
    std::vector<const char*> pointers;
    for (const Tokens& answer : answers) texts.push_back(text(answer));
    for (const std::string& written : texts) pointers.push_back(written.c_str());
    std::vector<double> rewards(answers.size(), kNone);
    if (objective.reward(asked.c_str(), pointers.data(), static_cast<int64_t>(pointers.size()), wanted.c_str(), rewards.data(),
                         objective.user) != 0)
      throw Cancelled("cancelled by a reward");
    return rewards;
  };
}

// What a run minimises; nothing for the cross-entropy.
std::optional<Objective> objective_of(const ProgramUse& use, const mobizo_objective* given_objective) {
  if (given_objective == nullptr) return {};
  const mobizo_objective o = taken(given_objective, "objective", objective_defaults());
  if (o.reward == nullptr) fail("objective.reward must not be NULL");
  given(o.tokenizer, "objective.tokenizer");
  const GenerateOptions writing{o.max_new_tokens, {o.temperature, o.top_k, o.top_p, o.seed}};
  return Objective(given(o.name, "objective.name"), use.generator(), writing,
                   asking(o, tokenizer_for(use.program(), o.tokenizer)));
}

// Between a run and its caller: reports go out as structs, and what comes back may end it.
class Listener {
 public:
  Listener(const ProgramUse& use, const mobizo_callbacks& callbacks, int64_t steps)
      : use_(use), callbacks_(callbacks), planned_(steps) {}

  Observer observer() {
    return {[] {}, [this](const StepReport& report) { step(report); },
            [this](const EvaluationReport& report) { validation(report); },
            [this](const std::string& sentence) {
              if (callbacks_.on_warning != nullptr) callbacks_.on_warning(sentence.c_str(), callbacks_.user);
            },
            [this](int64_t made) { at(made); }};
  }
  // Of a run that was cancelled.
  mobizo_train_result so_far() const { return {0, steps_, 0, 0, skipped_, steps_, evaluations_, kNone, kNone, kNone}; }

 private:
  void step(const StepReport& report) {
    steps_ = report.step + 1;
    skipped_ += report.skipped;
    if (callbacks_.on_step != nullptr) {
      const mobizo_step told{sizeof told,
                             report.step,
                             planned_,
                             report.loss,
                             report.lr,
                             report.seconds,
                             report.update_norm,
                             report.skipped,
                             report.unsteady,
                             report.losses.data(),
                             report.projected_gradients.data(),
                             static_cast<int64_t>(report.losses.size()),
                             static_cast<int64_t>(report.projected_gradients.size())};
      ended_ |= callbacks_.on_step(&told, callbacks_.user) != 0;
    }
    at(steps_);
  }

  void validation(const EvaluationReport& report) {
    ++evaluations_;
    if (callbacks_.on_evaluation != nullptr) {
      const mobizo_validation told{sizeof told, report.step, report.loss, report.accuracy, report.balanced_accuracy};
      ended_ |= callbacks_.on_evaluation(&told, callbacks_.user) != 0;
    }
    at(report.step);
  }

  // A place where the run may be ended, after `made` steps.
  void at(int64_t made) {
    steps_ = made;
    const std::string where = message("after ", made, made == 1 ? " step" : " steps");
    if (ended_) throw Cancelled("cancelled by a callback " + where);
    use_.check_cancelled(where);
  }

  const ProgramUse& use_;
  const mobizo_callbacks& callbacks_;
  int64_t planned_, steps_ = 0, skipped_ = 0, evaluations_ = 0;
  bool ended_ = false;
};

mobizo_train_result as_struct(const TrainResult& result) {
  mobizo_train_result told{0,
                           result.steps,
                           result.stopped,
                           result.resumed_steps,
                           result.skipped_steps,
                           result.best_step,
                           static_cast<int64_t>(result.evaluations.size()),
                           kNone,
                           kNone,
                           kNone};
  for (const EvaluationReport& report : result.evaluations)
    if (report.step == result.best_step) {
      told.loss = report.loss;
      told.accuracy = report.accuracy;
      told.balanced_accuracy = report.balanced_accuracy;
    }
  return told;
}

mobizo_readout as_struct(const Readout& readout) {
  mobizo_readout told{0, readout.rank, readout.rows, readout.ridge.value_or(kNone), kNone, kNone, readout.seconds};
  for (const auto& [ridge, loss] : readout.losses) {
    if (!ridge) told.loss_before = loss;
    if (ridge == readout.ridge) told.loss = loss;
  }
  return told;
}

int64_t rows_or(int64_t rows, int64_t otherwise, const char* name) {
  if (rows < 0) fail(name, " must be at least 0, got ", rows);
  return rows == 0 ? otherwise : rows;
}

}  // namespace
}  // namespace mobizo::trainer::c_interface

using namespace mobizo::trainer;
using namespace mobizo::trainer::c_interface;

mobizo_status mobizo_train_options_init(mobizo_train_options* options, uint64_t size) {
  return guarded([&] { initialize(options, size, defaults()); });
}

mobizo_status mobizo_objective_init(mobizo_objective* objective, uint64_t size) {
  return guarded([&] { initialize(objective, size, objective_defaults()); });
}

mobizo_status mobizo_train(mobizo_program* program, const char* dataset, const mobizo_train_options* options,
                           const mobizo_callbacks* callbacks, mobizo_train_result* result) {
  return guarded([&] {
    const ProgramUse use(program);
    given(dataset, "dataset");
    check_wanted(result, "result");
    const mobizo_train_options taken_options = taken(options, "options", defaults());
    TrainOptions checked_options = checked(taken_options);
    const std::optional<Objective> objective = objective_of(use, taken_options.objective);
    if (objective) checked_options.objective = &*objective;
    const mobizo_callbacks checked_callbacks = taken(callbacks, "callbacks");
    Listener listener(use, checked_callbacks, checked_options.steps);
    try {
      const TrainResult made = train(use.program(), Dataset(dataset), checked_options, listener.observer());
      fill(result, as_struct(made));
      if (!made.lost.empty()) throw JournalLost(made.lost);
    } catch (const Cancelled&) {
      fill(result, listener.so_far());
      throw;
    }
  });
}

mobizo_status mobizo_read_out(mobizo_program* program, const char* dataset, int64_t rows, int64_t validation_rows,
                              mobizo_readout* readout) {
  return guarded([&] {
    const ProgramUse use(program);
    given(dataset, "dataset");
    check_wanted(readout, "readout");
    const int64_t most = rows_or(rows, run_defaults::readout_rows, "rows"),
                  held_out = rows_or(validation_rows, run_defaults::validation_rows, "validation_rows");
    const auto before_forward = [&] { use.check_cancelled("before the readout was made"); };
    fill(readout, as_struct(read_out(use.program(), Dataset(dataset), most, held_out, before_forward)));
  });
}

mobizo_status mobizo_replay(mobizo_program* program, const char* journal, int64_t until, int64_t* steps) {
  return guarded([&] {
    const ProgramUse use(program);
    const int64_t made =
        replay(use.program(), given(journal, "journal"), until == -1 ? std::nullopt : std::optional<int64_t>(until));
    if (steps != nullptr) *steps = made;
  });
}
