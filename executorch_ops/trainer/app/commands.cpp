#include "commands.h"

#include <fcntl.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "../files/errors.h"
#include "../loop/trainer.h"
#include "../program/adapter.h"
#include "../program/file_info.h"
#include "options.h"
#include "start.h"
#include "text_input.h"

namespace mobizo::trainer {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

double peak_rss_mb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

Json as_json(const EvaluationReport& report) {
  return Json::Object{{"step", report.step},
                      {"loss", report.loss},
                      {"accuracy", report.accuracy},
                      {"balanced_accuracy", report.balanced_accuracy}};
}

Json as_json(const StepReport& report) {
  return Json::Object{{"step", report.step},
                      {"loss", report.loss},
                      {"losses", Json::list(report.losses)},
                      {"projected_gradients", Json::list(report.projected_gradients)},
                      {"update_norm", double{report.update_norm}},
                      {"lr", report.lr},
                      {"seconds", report.seconds},
                      {"skipped", report.skipped},
                      {"unsteady", report.unsteady}};
}

Json as_json(const Readout& readout) {
  Json::Array losses;
  for (const auto& [ridge, loss] : readout.losses) losses.emplace_back(Json::Array{ridge ? Json(*ridge) : Json(), loss});
  return Json::Object{{"ridge", readout.ridge ? Json(*readout.ridge) : Json()},
                      {"rank", readout.rank},
                      {"losses", std::move(losses)},
                      {"rows", readout.rows},
                      {"seconds", readout.seconds}};
}

void print_json(bool wanted, const Json& json) {
  if (wanted) std::printf("%s\n", json.dump().c_str());
}

// What the run says while it goes on: lines to read, and a log to parse.
class Progress {
 public:
  Progress(int64_t steps, int64_t print_every, bool quiet, const std::string& log)
      : steps_(steps), print_every_(print_every), quiet_(quiet) {
    if (!log.empty()) log_ = std::make_unique<File>(log, O_WRONLY | O_CREAT | O_APPEND);
  }

  Observer observer() {
    return {[] {}, [this](const StepReport& report) { step(report); },
            [this](const EvaluationReport& report) { evaluation(report); },
            [](const std::string& text) { std::fprintf(stderr, "mobizo_runner: %s\n", text.c_str()); }};
  }
  double median_step_ms() const { return 1e3 * median(seconds_); }

 private:
  void step(const StepReport& report) {
    seconds_.push_back(report.seconds);
    record("step", as_json(report));
    if (quiet_ || (report.step + 1) % print_every_ != 0) return;
    std::printf("step %lld/%lld: loss %.4f, %.0f ms%s\n", static_cast<long long>(report.step) + 1,
                static_cast<long long>(steps_), report.loss, 1e3 * report.seconds, report.skipped ? ", skipped" : "");
    std::fflush(stdout);
  }

  void evaluation(const EvaluationReport& report) {
    record("evaluation", as_json(report));
    if (quiet_) return;
    std::printf("after %lld steps: validation loss %.4f, accuracy %.1f %%\n", static_cast<long long>(report.step), report.loss,
                100 * report.accuracy);
    std::fflush(stdout);
  }

  void record(const char* kind, const Json& json) {
    if (!log_) return;
    const std::string line = Json(Json::Object{{kind, json}}).dump() + "\n";
    log_->append(line.data(), line.size());
  }

  int64_t steps_, print_every_;
  bool quiet_;
  std::unique_ptr<File> log_;
  std::vector<double> seconds_;
};

}  // namespace

void train_command(int argc, char** argv) {
  TrainOptions train_options;
  std::string adapter_in, adapter_out, log, start_with = "auto";
  int64_t threads = 0, print_every = 10, readout_rows = run_defaults::readout_rows;
  bool quiet = false, json = false;
  TextInput texts;
  texts.options().seed = size_of(train_options.run_seed);
  Options options("train PROGRAM DATASET --adapter-out FILE [OPTION...]",
                  "Tune the adapter of a program on a data set or, with --tokenizer, on texts: FILE.csv or FILE.jsonl.");
  options.text("adapter-out", "FILE", adapter_out, "where the adapter goes, as .safetensors; needed");
  options.text("adapter-in", "FILE", adapter_in, "the adapter to begin with [that of the program]");
  texts.declare(options);
  options.choice(
      "start", "auto|zero|readout", start_with,
      "what the steps go on from: that adapter, or with a logistic regression on the last hidden states as well; auto "
      "makes one where there are labels and no --adapter-in");
  options.whole("readout-rows", readout_rows, 1, "most rows that a readout is made of");
  options.whole("steps", train_options.steps, 1, "number of steps");
  options.number("eps", train_options.eps, "size of a perturbation");
  options.number("lr", train_options.lr, "learning rate");
  options.choice("lr-schedule", "constant|linear|cosine", train_options.lr_schedule, "how it goes on");
  options.flag("normalize", train_options.normalize, "divide by the spread of the losses");
  options.flag("no-normalize", train_options.normalize, "divide by eps", false);
  options.seed("run-seed", train_options.run_seed, "seed of all directions", &texts.options().seed);
  options.text("journal", "FILE", train_options.journal, "record every step, so that the run can be resumed");
  options.whole("sync-every", train_options.sync_every, 1, "steps between syncs of the journal to the disk");
  options.flag("resume", train_options.resume, "go on with the journal if there is one");
  options.whole("eval-every", train_options.eval_every, 0, "steps between validations, 0 for none [a tenth of steps]");
  options.whole("validation-rows", train_options.validation_rows, 1, "most rows of the validation split to use");
  options.choice("keep", "best|last", train_options.keep,
                 "the adapter of the last step, or the latest not significantly worse than the best");
  options.flag("stop-unsteady", train_options.stop_unsteady, "end the run when its loss runs away");
  options.flag("no-stop-unsteady", train_options.stop_unsteady, "go on whatever the loss does", false);
  options.whole("threads", threads, 0, "CPU threads, 0 for ExecuTorch's choice");
  options.text("log", "FILE", log, "append a line of JSON for each step and validation");
  options.whole("print-every", print_every, 1, "steps between lines of progress");
  options.flag("quiet", quiet, "no lines of progress");
  options.flag("json", json, "print one JSON object as the last line");
  const auto files = options.parse(argc, argv, 2);
  if (!files) return;
  if (adapter_out.empty()) fail("--adapter-out is needed");
  check_output("--adapter-out", adapter_out);
  if (!train_options.journal.empty() && !exists(train_options.journal)) check_created("--journal", train_options.journal);
  check_distinct(
      {{"--journal", train_options.journal},
       {"the start of --journal", start_path(train_options.journal)},
       {"--adapter-out", adapter_out},
       {"--log", log}},
      {{"PROGRAM", (*files)[0]}, {"DATASET", (*files)[1]}, {"--adapter-in", adapter_in}, {"--tokenizer", texts.tokenizer()}});
  texts.check((*files)[1]);

  const auto start = Clock::now();
  std::optional<Dataset> data;
  if (!texts.given()) data.emplace((*files)[1]);
  Program program((*files)[0], threads);
  if (texts.given()) {
    texts.options().batch_size = program.description().batch_size;
    texts.options().steps = train_options.steps;
    texts.options().validation_rows = train_options.validation_rows;  // a run of the data set has the same journal
    texts.options().eval_rows = kTestRows;
    data.emplace(texts.dataset((*files)[1], program.description()));
  }
  const Dataset& dataset = *data;
  if (!adapter_in.empty()) {
    load_adapter(adapter_in, program);
    if (start_with == "auto") start_with = "zero";
  }
  const Beginning beginning = begin(program, dataset, train_options, start_with, readout_rows);
  const std::optional<Readout>& readout = beginning.readout;
  if (readout && !quiet)
    std::printf("read out %lld rows in %.1f s, rank %lld\n", static_cast<long long>(readout->rows), readout->seconds,
                static_cast<long long>(readout->rank));
  Progress progress(train_options.steps, print_every, quiet, log);
  const double load_seconds = seconds_since(start);
  Observer observer = progress.observer();
  observer.on_begin = beginning.keep;
  const TrainResult result = train(program, dataset, train_options, observer);
  save_adapter(adapter_out, program.description(), program.adapter());
  if (!result.lost.empty())
    throw JournalLost(message(result.lost, "; stopped after ", result.steps, " steps, the adapter so far is in ", adapter_out));
  if (result.stopped)
    std::fprintf(stderr, "mobizo_runner: stopped after %lld steps: the loss runs away; try a lower --lr\n",
                 static_cast<long long>(result.steps));
  if (!quiet) std::printf("kept the adapter of step %lld: %s\n", static_cast<long long>(result.best_step), adapter_out.c_str());
  Json::Array evaluations;
  for (const EvaluationReport& report : result.evaluations) evaluations.push_back(as_json(report));
  print_json(json, Json::Object{{"steps", result.steps},
                                {"stopped", result.stopped},
                                {"resumed_steps", result.resumed_steps},
                                {"skipped_steps", result.skipped_steps},
                                {"best_step", result.best_step},
                                {"evaluations", std::move(evaluations)},
                                {"readout", readout ? as_json(*readout) : Json()},
                                {"adapter", adapter_out},
                                {"step_ms_median", progress.median_step_ms()},
                                {"load_seconds", load_seconds},
                                {"seconds", seconds_since(start)},
                                {"peak_rss_mb", peak_rss_mb()}});
}

void evaluate_command(int argc, char** argv) {
  std::string split = "test", adapter;
  int64_t rows = 0, threads = 0;
  bool json = false;
  TextInput texts;
  Options options("evaluate PROGRAM DATASET [OPTION...]",
                  "Score the rows of a split of a data set or, with --tokenizer, of texts: FILE.csv or FILE.jsonl.");
  options.choice("split", "train|validation|test", split, "the rows to score");
  options.whole("rows", rows, 0, "most rows to score, 0 for all");
  options.text("adapter", "FILE", adapter, "the adapter to score [that of the program]");
  texts.declare(options);
  options.whole("threads", threads, 0, "CPU threads, 0 for ExecuTorch's choice");
  options.flag("json", json, "print one JSON object as the last line");
  const auto files = options.parse(argc, argv, 2);
  if (!files) return;

  texts.check((*files)[1]);

  const auto start = Clock::now();
  std::optional<Dataset> data;
  if (!texts.given()) data.emplace((*files)[1]);
  Program program((*files)[0], threads);
  if (texts.given()) data.emplace(texts.dataset((*files)[1], program.description()));
  const Dataset& dataset = *data;
  const Split& chosen = dataset.split(split);
  dataset.check(program.description());
  if (!adapter.empty()) load_adapter(adapter, program);
  const Evaluation evaluation = evaluate(program, chosen, rows);
  std::printf("%lld rows: loss %.4f, accuracy %.2f %%", static_cast<long long>(evaluation.rows), evaluation.loss,
              100 * evaluation.accuracy);
  if (std::isfinite(evaluation.balanced_accuracy))  // some rows have no label
    std::printf(", balanced accuracy %.2f %%", 100 * evaluation.balanced_accuracy);
  std::printf("\n");
  print_json(json, Json::Object{{"split", split},
                                {"rows", evaluation.rows},
                                {"loss", evaluation.loss},
                                {"accuracy", evaluation.accuracy},
                                {"balanced_accuracy", evaluation.balanced_accuracy},
                                {"seconds", seconds_since(start)},
                                {"peak_rss_mb", peak_rss_mb()}});
}

void replay_command(int argc, char** argv) {
  std::string adapter_in, adapter_out;
  std::optional<int64_t> until;
  int64_t threads = 0;
  bool json = false;
  Options options("replay PROGRAM JOURNAL --adapter-out FILE [OPTION...]", "Rebuild an adapter from the journal of its run.");
  options.text("adapter-out", "FILE", adapter_out, "where the adapter goes, as .safetensors; needed");
  options.text("adapter-in", "FILE", adapter_in,
               "the adapter with which the run began [what is kept beside the journal, or that of the program]");
  options.whole("until", until, 0, "steps to replay [all]");
  options.whole("threads", threads, 0, "CPU threads, 0 for ExecuTorch's choice");
  options.flag("json", json, "print one JSON object as the last line");
  const auto files = options.parse(argc, argv, 2);
  if (!files) return;
  if (adapter_out.empty()) fail("--adapter-out is needed");
  check_output("--adapter-out", adapter_out);
  const std::string kept = start_path((*files)[1]);
  check_distinct(
      {{"--adapter-out", adapter_out}},
      {{"PROGRAM", (*files)[0]}, {"JOURNAL", (*files)[1]}, {"the start of JOURNAL", kept}, {"--adapter-in", adapter_in}});

  Program program((*files)[0], threads);
  if (adapter_in.empty() && exists(kept)) adapter_in = kept;
  if (!adapter_in.empty()) load_adapter(adapter_in, program);
  const int64_t steps = replay(program, (*files)[1], until);
  save_adapter(adapter_out, program.description(), program.adapter());
  std::printf("replayed %lld steps: %s\n", static_cast<long long>(steps), adapter_out.c_str());
  print_json(json, Json::Object{{"steps", steps}, {"adapter", adapter_out}});
}

void info_command(int argc, char** argv) {
  Options options("info FILE", "Print what a program, a data set, an adapter or a journal says of itself, as JSON.");
  const auto files = options.parse(argc, argv, 1);
  if (!files) return;
  print_json(true, file_info(files->front()));
}

}  // namespace mobizo::trainer
