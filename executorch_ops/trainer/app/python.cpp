// The trainer as a Python module, _trainer. Arrays come in as numpy's, of exactly the dtype and shape that is documented for
// the method of the program; Error becomes ValueError, SystemError OSError.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>

#include "../files/errors.h"
#include "../files/safetensors.h"
#include "../loop/generator.h"
#include "../loop/logistic.h"
#include "../loop/readout.h"
#include "../loop/trainer.h"
#include "../program/adapter.h"
#include "../text/tokenized.h"
#include "python_path.h"
#include "python_text.h"
#include "python_tokenizer.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace mobizo::trainer {
namespace {

template <typename T>
py::array_t<T> to_array(const std::vector<T>& values, const std::vector<int64_t>& shape) {
  return py::array_t<T>(shape, values.data());
}

template <typename T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return to_array(values, {static_cast<int64_t>(values.size())});
}

std::vector<int64_t> shape_of(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

template <typename T>
std::vector<T> to_vector(const char* name, const py::array& array, const std::vector<int64_t>& shape) {
  if (!array.dtype().equal(py::dtype::of<T>()))
    fail(name, " must be ", std::string(py::str(py::dtype::of<T>())), ", got ", std::string(py::str(array.dtype())));
  if (shape_of(array) != shape) fail(name, " must have shape ", shape_text(shape), ", got ", shape_text(shape_of(array)));
  const auto contiguous = py::array_t<T, py::array::c_style>::ensure(array);
  return {contiguous.data(), contiguous.data() + contiguous.size()};
}

py::dict to_dict(const StepReport& report) {
  return py::dict("step"_a = report.step, "loss"_a = report.loss, "losses"_a = to_array(report.losses),
                  "projected_gradients"_a = to_array(report.projected_gradients), "update_norm"_a = report.update_norm,
                  "lr"_a = report.lr, "seconds"_a = report.seconds, "skipped"_a = report.skipped,
                  "unsteady"_a = report.unsteady);
}

py::dict to_dict(const EvaluationReport& report) {
  return py::dict("step"_a = report.step, "loss"_a = report.loss, "accuracy"_a = report.accuracy,
                  "balanced_accuracy"_a = report.balanced_accuracy);
}

// Raises what a signal's handler has raised since the last call.
void check_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

// Calls a function of Python, if there is one; a signal is heard here, too.
template <typename Report>
std::function<void(const Report&)> calling(const py::object& function) {
  return [&function](const Report& report) {
    const py::gil_scoped_acquire gil;
    check_signals();
    if (!function.is_none()) function(to_dict(report));
  };
}

// A function of Python that gives a float for each answer.
Reward calling_reward(const py::object& function) {
  return [&function](const Tokens& prompt, const std::vector<Tokens>& answers, const Tokens& reference) {
    const py::gil_scoped_acquire gil;
    return function(prompt, answers, reference).cast<std::vector<double>>();
  };
}

void warn(const std::string& text) {
  const py::gil_scoped_acquire gil;
  if (PyErr_WarnEx(PyExc_UserWarning, text.c_str(), 3) != 0) throw py::error_already_set();
}

class Trainer {
 public:
  Trainer(const Path& program, int64_t threads) : program_(program.string(), threads) {}

  const std::string& description() const { return program_.description().text; }

  // objective: its name, "" for the cross-entropy; reward: of what is written, None for the accuracy of labels.
  py::dict train(const Path& dataset, TrainOptions options, const std::string& objective, const py::object& reward,
                 const GenerateOptions& writing, const py::object& on_begin, const py::object& on_step,
                 const py::object& on_evaluation) {
    const auto begun = [&] {
      const py::gil_scoped_acquire gil;
      if (!on_begin.is_none()) on_begin();
    };
    const Observer observer{begun, calling<StepReport>(on_step), calling<EvaluationReport>(on_evaluation), warn,
                            [](int64_t) { check_signals(); }};
    std::optional<Objective> minimised;
    const TrainResult result = working([&] {
      if (!reward.is_none()) {
        minimised.emplace(objective, generator(), writing, calling_reward(reward));
      } else if (!objective.empty()) {
        minimised.emplace(label_accuracy(program_, generator()));
      }
      if (minimised) options.objective = &*minimised;
      return trainer::train(program_, Dataset(dataset.string()), options, observer);
    });
    py::list evaluations;
    for (const EvaluationReport& report : result.evaluations) evaluations.append(to_dict(report));
    return py::dict("steps"_a = result.steps, "stopped"_a = result.stopped, "lost"_a = result.lost,
                    "resumed_steps"_a = result.resumed_steps, "skipped_steps"_a = result.skipped_steps,
                    "best_step"_a = result.best_step, "evaluations"_a = evaluations);
  }

  py::dict evaluate(const Path& path, const std::string& name, int64_t rows, bool keep_scores) {
    if (rows < 0) fail("rows must be at least 0, got ", rows);
    std::vector<int32_t> labels;
    const Evaluation e = working([&] {
      const Dataset dataset(path.string());
      const Split& split = dataset.split(name);
      dataset.check(program_.description());
      Evaluation evaluation = trainer::evaluate(program_, split, rows, keep_scores);
      labels.assign(split.labels.begin(), split.labels.begin() + evaluation.rows);
      return evaluation;
    });
    return py::dict("rows"_a = e.rows, "loss"_a = e.loss, "accuracy"_a = e.accuracy,
                    "balanced_accuracy"_a = e.balanced_accuracy, "labels"_a = to_array(labels),
                    "scores"_a = to_array(e.scores, {keep_scores ? e.rows : 0, e.classes}));
  }

  void tokenize(const Path& texts, const Path& out, TextOptions options) {
    const std::string& path = texts.string();
    if (!is_text_file(path)) fail("texts: expected FILE.csv or FILE.jsonl, got '", path, "'");
    if (options.answers != "all" && options.answers != "last") fail("answers must be all or last, got '", options.answers, "'");
    for (const auto& [name, rows] : {std::pair("train_rows", options.train_rows),
                                     {"validation_rows", options.validation_rows},
                                     {"test_rows", options.eval_rows},
                                     {"max_length", options.max_length},
                                     {"steps", std::optional(options.steps)}})
      if (rows.value_or(1) < 1) fail(name, " must be at least 1, got ", *rows);
    check_output("dataset", out.string());
    check_distinct({{"dataset", out.string()}},
                   {{"texts", path}, {"tokenizer", options.tokenizer}, {"the program", program_.path()}});
    options.batch_size = program_.description().batch_size;
    working([&] {
      TokenizedTexts made = tokenized(path, program_.description(), options);
      Dataset(path, std::move(made.content)).check(program_.description());
      for (const std::string& warning : made.warnings) warn(printable(warning));
      write_atomically(out.string(), {made.bytes});
    });
  }

  py::dict read_out(const Path& dataset, int64_t rows, int64_t validation_rows) {
    const Readout r = working([&] { return trainer::read_out(program_, Dataset(dataset.string()), rows, validation_rows); });
    return py::dict("ridge"_a = r.ridge, "rank"_a = r.rank, "losses"_a = r.losses, "rows"_a = r.rows, "seconds"_a = r.seconds);
  }

  py::tuple train_step(const py::array& input_ids, const py::array& attention_mask, const py::array& target_positions,
                       const py::array& target_ids, const py::array& seeds, const py::array& coeffs,
                       const py::object& update_seeds, const py::object& update_coeffs, float update_lr, float update_decay) {
    const Description& d = program_.description();
    Batch batch = to_batch(d.batch_size, input_ids, attention_mask, target_positions);
    batch.target_ids = to_vector<int64_t>("target_ids", target_ids, {d.batch_size, d.targets_per_row});
    const auto group_seeds = to_vector<int64_t>("seeds", seeds, {d.groups});
    const auto group_coeffs = to_vector<float>("coeffs", coeffs, {d.groups});
    std::optional<Update> previous;
    if (!update_seeds.is_none() || !update_coeffs.is_none())
      previous = to_update(update_seeds.cast<py::array>(), update_coeffs.cast<py::array>(), update_lr, update_decay);
    const TrainStep step = working([&] { return program_.train_step(batch, group_seeds, group_coeffs, previous); });
    return py::make_tuple(to_array(step.losses), step.update_norm);
  }

  py::array evaluate_batch(const py::array& input_ids, const py::array& attention_mask, const py::array& target_positions) {
    const Description& d = program_.description();
    const Batch batch = to_batch(d.evaluation_rows, input_ids, attention_mask, target_positions);
    const std::vector<float> logits = working([&] { return program_.evaluate(batch); });
    return to_array(logits, {d.evaluation_rows, d.targets_per_row, d.classes()});
  }

  float update(const py::array& update_seeds, const py::array& update_coeffs, float update_lr, float update_decay) {
    const Update update = to_update(update_seeds, update_coeffs, update_lr, update_decay);
    return working([&] { return program_.update(update); });
  }

  int64_t replay(const Path& journal, std::optional<int64_t> until) {
    return working([&] { return trainer::replay(program_, journal.string(), until); });
  }

  py::dict generate(const std::vector<int64_t>& prompt, const GenerateOptions& options, const py::object& on_token) {
    const OnToken tell = [&](int64_t token) {
      if (on_token.is_none()) return true;
      const py::gil_scoped_acquire gil;
      on_token(token);
      return true;
    };
    const Generated g = working([&] { return generator().generate(prompt, options, tell, check_signals); });
    return py::dict("tokens"_a = g.tokens, "ended"_a = g.ended, "reused"_a = g.reused, "prefilled"_a = g.prefilled,
                    "prefill_seconds"_a = g.prefill_seconds, "decode_seconds"_a = g.decode_seconds);
  }

  py::dict adapter() {
    const Adapter adapter = working([&] { return program_.adapter(); });
    py::dict tensors;
    for (size_t i = 0; i < adapter.lora_a.size(); ++i) {
      const AdapterParameter& parameter = program_.description().adapter.parameters[i];
      tensors[py::str(factor_name(parameter.name, "A"))] = to_array(adapter.lora_a[i], parameter.lora_a);
      tensors[py::str(factor_name(parameter.name, "B"))] = to_array(adapter.lora_b[i], parameter.lora_b);
    }
    if (adapter.head) {
      const HeadDescription& head = *program_.description().head;
      const int64_t rank = adapter.head->rank;
      tensors[py::str(factor_name(head.name, "A"))] = to_array(adapter.head->lora_a, {rank, head.shape[1]});
      tensors[py::str(factor_name(head.name, "B"))] =
          to_array(head_lora_b(*adapter.head, program_.description()), {head.shape[0], rank});
    }
    return tensors;
  }

  void save_adapter(const Path& path) {
    check_distinct({{"path", path.string()}}, {{"the program", program_.path()}});
    working([&] { trainer::save_adapter(path.string(), program_.description(), program_.adapter()); });
  }

  void load_adapter(const Path& path) {
    working([&] { trainer::load_adapter(path.string(), program_); });
  }

 private:
  // Throws Error if the program cannot write.
  Generator& generator() { return generator_ ? *generator_ : generator_.emplace(program_); }

  // Runs `work` without the interpreter's lock: other threads of Python go on, but may not use this trainer meanwhile.
  template <typename Work>
  auto working(Work work) -> decltype(work()) {
    const py::gil_scoped_release release;
    if (busy_.exchange(true)) fail("this trainer is at work: use it again when the call that it is in has returned");
    const struct Done {
      std::atomic<bool>& busy;
      ~Done() { busy = false; }
    } done{busy_};
    return work();
  }

  Batch to_batch(int64_t rows, const py::array& input_ids, const py::array& attention_mask, const py::array& target_positions) {
    if (input_ids.ndim() != 2) fail("input_ids must have two dimensions, got ", input_ids.ndim());
    Batch batch{};
    batch.rows = rows;
    batch.length = input_ids.shape(1);
    batch.targets_per_row = program_.description().targets_per_row;
    batch.input_ids = to_vector<int64_t>("input_ids", input_ids, {rows, batch.length});
    batch.attention_mask = to_vector<int64_t>("attention_mask", attention_mask, {rows, batch.length});
    batch.target_positions = to_vector<int64_t>("target_positions", target_positions, {rows, batch.targets_per_row});
    return batch;
  }

  Update to_update(const py::array& seeds, const py::array& coeffs, float rate, float decay) {
    const int64_t queries = program_.description().queries;
    return {to_vector<int64_t>("update_seeds", seeds, {queries}), to_vector<float>("update_coeffs", coeffs, {queries}), rate,
            decay};
  }

  Program program_;
  std::optional<Generator> generator_;  // of the first text that is written
  std::atomic<bool> busy_{false};
};

States to_states(const py::array& hidden, const py::array& outputs, const py::array& labels) {
  const int64_t rows = labels.size(), width = hidden.size() / rows, classes = outputs.size() / rows;
  return {rows,
          width,
          classes,
          to_vector<float>("hidden", hidden, {rows, width}),
          to_vector<float>("outputs", outputs, {rows, classes}),
          to_vector<int32_t>("labels", labels, {rows})};
}

// A name of a file need not be UTF-8.
py::str text_of(const std::exception& error) { return py::reinterpret_steal<py::str>(PyUnicode_DecodeFSDefault(error.what())); }

void translate(std::exception_ptr pointer) {  // NOLINT(performance-unnecessary-value-param): as pybind11 has it
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const SystemError& error) {
    PyErr_SetObject(PyExc_OSError, py::make_tuple(error.code(), text_of(error)).ptr());
  } catch (const Error& error) {
    PyErr_SetObject(PyExc_ValueError, text_of(error).ptr());
  }
}

}  // namespace
}  // namespace mobizo::trainer

PYBIND11_MODULE(_trainer, module) {
  using namespace mobizo::trainer;
  py::register_local_exception_translator(&translate);
  module.def("read_description", [](const Path& program) { return read_description(program.string()).text; }, "program"_a);
  bind_tokenizer(module);
  bind_text(module);
  module.def("regress",  // for tests
             [](const py::array& hidden, const py::array& outputs, const py::array& labels, const py::array& validation_hidden,
                const py::array& validation_outputs, const py::array& validation_labels, double scale, double soft_cap) {
               const States seen = to_states(hidden, outputs, labels),
                            held_out = to_states(validation_hidden, validation_outputs, validation_labels);
               const Regression found = regress(seen, held_out, {scale, soft_cap});
               const Factors made = factors(found.added, seen.classes, seen.width);
               return py::make_tuple(found.ridge, found.losses, to_array(found.added, {seen.classes, seen.width}),
                                     to_array(made.words, {seen.classes, made.rank}),
                                     to_array(made.directions, {made.rank, seen.width}));
             });
  module.def("choose",  // for tests
             [](const py::array& logits, double temperature, int64_t top_k, double top_p, int64_t seed, int64_t n) {
               const Sampling sampling{temperature, top_k, top_p, seed};
               return choose(to_vector<float>("logits", logits, {logits.size()}), sampling, uniform_of(seed, n));
             });
  py::class_<Trainer>(module, "Trainer")
      .def(py::init<const Path&, int64_t>(), "program"_a, "threads"_a = 0)
      .def("description", &Trainer::description)
      .def(
          "train",
          [](Trainer& trainer, const Path& dataset, int64_t steps, double eps, double lr, const std::string& lr_schedule,
             bool normalize, int64_t run_seed, const std::optional<Path>& journal, int64_t sync_every, bool resume,
             std::optional<int64_t> eval_every, int64_t validation_rows, const std::string& keep, bool stop_unsteady,
             const std::string& objective, const py::object& reward, const std::string& reward_shaping, int64_t max_new_tokens,
             double temperature, int64_t top_k, double top_p, int64_t seed, const py::object& on_begin,
             const py::object& on_step, const py::object& on_evaluation) {
            TrainOptions options;
            options.steps = steps;
            options.eps = eps;
            options.lr = lr;
            options.lr_schedule = lr_schedule;
            options.normalize = normalize;
            options.run_seed = run_seed;
            if (journal) options.journal = journal->string();
            options.sync_every = sync_every;
            options.resume = resume;
            options.eval_every = eval_every;
            options.validation_rows = validation_rows;
            options.keep = keep;
            options.stop_unsteady = stop_unsteady;
            options.reward_shaping = reward_shaping;
            const GenerateOptions writing{max_new_tokens, {temperature, top_k, top_p, seed}};
            return trainer.train(dataset, options, objective, reward, writing, on_begin, on_step, on_evaluation);
          },
          "dataset"_a, py::kw_only(), "steps"_a, "eps"_a, "lr"_a, "lr_schedule"_a, "normalize"_a, "run_seed"_a, "journal"_a,
          "sync_every"_a, "resume"_a, "eval_every"_a, "validation_rows"_a, "keep"_a, "stop_unsteady"_a, "objective"_a,
          "reward"_a, "reward_shaping"_a, "max_new_tokens"_a = 64, "temperature"_a = 0.0, "top_k"_a = 0, "top_p"_a = 1.0,
          "seed"_a = 0, "on_begin"_a, "on_step"_a, "on_evaluation"_a)
      .def(
          "tokenize",
          [](Trainer& trainer, const Path& texts, const Path& dataset, const Path& tokenizer, const std::string& text_column,
             const std::string& label_column, const std::string& answers, int64_t steps, const py::int_& seed,
             std::optional<int64_t> train_rows, std::optional<int64_t> validation_rows, std::optional<int64_t> eval_rows,
             std::optional<int64_t> max_length) {
            trainer.tokenize(texts, dataset,
                             {tokenizer.string(), text_column, label_column, answers, steps, /*batch_size=*/1, size_of(seed),
                              train_rows, validation_rows, eval_rows, max_length});
          },
          "texts"_a, "dataset"_a, py::kw_only(), "tokenizer"_a, "text_column"_a, "label_column"_a, "answers"_a, "steps"_a,
          "seed"_a, "train_rows"_a, "validation_rows"_a, "eval_rows"_a, "max_length"_a)
      .def("evaluate", &Trainer::evaluate, "dataset"_a, "split"_a = "test", "rows"_a = 0, "scores"_a = true)
      .def("read_out", &Trainer::read_out, "dataset"_a, "rows"_a, "validation_rows"_a)
      .def("train_step", &Trainer::train_step, "input_ids"_a, "attention_mask"_a, "target_positions"_a, "target_ids"_a,
           "seeds"_a, "coeffs"_a, "update_seeds"_a = py::none(), "update_coeffs"_a = py::none(), "update_lr"_a = 0.0f,
           "update_decay"_a = 1.0f)
      .def("evaluate_batch", &Trainer::evaluate_batch, "input_ids"_a, "attention_mask"_a, "target_positions"_a)
      .def("update", &Trainer::update, "update_seeds"_a, "update_coeffs"_a, "update_lr"_a = 0.0f, "update_decay"_a = 1.0f)
      .def(
          "generate",
          [](Trainer& trainer, const std::vector<int64_t>& prompt, int64_t max_new_tokens, double temperature, int64_t top_k,
             double top_p, int64_t seed, const py::object& on_token) {
            return trainer.generate(prompt, {max_new_tokens, {temperature, top_k, top_p, seed}}, on_token);
          },
          "prompt"_a, py::kw_only(), "max_new_tokens"_a, "temperature"_a, "top_k"_a, "top_p"_a, "seed"_a, "on_token"_a)
      .def("replay", &Trainer::replay, "journal"_a, "until"_a = py::none())
      .def("adapter", &Trainer::adapter)
      .def("save_adapter", &Trainer::save_adapter, "path"_a)
      .def("load_adapter", &Trainer::load_adapter, "path"_a);
}
