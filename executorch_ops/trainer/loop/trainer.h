// The training loop: seeds and batches in, losses out, an update per step, a journal of all of it.
#pragma once

#include <loop/run_defaults.h>  // generated

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "../files/journal.h"
#include "../program/evaluation.h"
#include "objective.h"

namespace mobizo::trainer {

struct TrainOptions {
  int64_t steps = run_defaults::steps;
  double eps = run_defaults::eps, lr = run_defaults::lr;
  // "constant", "linear" or "cosine"
  std::string lr_schedule = run_defaults::lr_schedule;
  // divide by the spread of the losses, not by eps
  bool normalize = run_defaults::normalize;
  int64_t run_seed = run_defaults::run_seed;
  // path; "" for none
  std::string journal;
  // steps between syncs of the journal to the disk
  int64_t sync_every = run_defaults::sync_every;
  // go on with the journal if it exists
  bool resume = run_defaults::resume;
  // steps between validations; 0 for none; a tenth of steps if not given
  std::optional<int64_t> eval_every;
  // at most
  int64_t validation_rows = run_defaults::validation_rows;
  // "best", the adapter that Selection chooses or, if the loss ran away, that of the lowest loss; "last", that of the last step
  std::string keep = run_defaults::keep;
  // end the run when its loss has run away, see DivergenceGuard
  bool stop_unsteady = run_defaults::stop_unsteady;
  // what is minimised in place of the cross-entropy; has to outlive the run
  const Objective* objective = nullptr;
  // of the losses by which directions are weighed: "none", "standardise" or "rank"
  std::string reward_shaping = "none";
};

struct StepReport {
  int64_t step;                                    // from 0
  double loss;                                     // of the model before the update
  std::vector<float> losses, projected_gradients;  // [G]; [q], NaN if the step was skipped
  float update_norm;                               // of the update before this step's, which its forward applied
  double lr, seconds;
  bool skipped;   // something was not finite, so nothing is updated
  bool unsteady;  // the loss has run away
};

struct EvaluationReport {
  int64_t step;                              // steps made
  double loss, accuracy, balanced_accuracy;  // the last two NaN if it is the loss of an objective
};

// Called before the first step, when the journal, if there is one, is open and no other run writes it; after each step and each
// validation, with a sentence that the user should read, and, with the steps made, before each
// forward of a validation or of what an objective has written. What they throw ends the run: the adapter is then that of the
// last step that the journal has.
struct Observer {
  std::function<void()> on_begin = [] {};
  std::function<void(const StepReport&)> on_step = [](const StepReport&) {};
  std::function<void(const EvaluationReport&)> on_evaluation = [](const EvaluationReport&) {};
  std::function<void(const std::string&)> on_warning = [](const std::string&) {};
  std::function<void(int64_t)> before_forward = [](int64_t) {};
};

struct TrainResult {
  int64_t steps;          // in all, fewer than planned if the run was stopped
  bool stopped;           // because the loss ran away, or the journal was lost
  std::string lost;       // what befell the journal, in a sentence; "" if nothing
  int64_t resumed_steps;  // of these, replayed from the journal
  int64_t skipped_steps;  // of those made now
  int64_t best_step;      // steps behind the adapter that was kept
  std::vector<EvaluationReport> evaluations;
};

// Tunes the adapter that the program has now and leaves the kept one in it. When it resumes, that must be the adapter with
// which the journal began. Throws Error before the first step if options, data set or journal do not fit, and whenever the
// journal cannot be written. A journal that was removed, replaced or changed by another program ends the run early, with the
// kept adapter in the program, for nothing else has what it learned.
TrainResult train(Program& program, const Dataset& dataset, const TrainOptions& options, const Observer& observer = {});

// Applies the first `until` records of a journal, all of them if not given, to the adapter that the program has now, which must
// be the one with which the journal began. Returns their number. Throws Error if the journal is of another program.
int64_t replay(Program& program, const std::string& path, std::optional<int64_t> until = {});

}  // namespace mobizo::trainer
