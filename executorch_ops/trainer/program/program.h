// A training program (.pte) in memory: its methods with their types, its one adapter, its description.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dataset.h"
#include "description.h"

namespace mobizo::trainer {

// A LoRA of the rows of the LM head that belong to the candidate tokens, of scaling 1; runs leave it as it is.
struct HeadAdapter {
  int64_t rank;
  std::vector<float> lora_a, words;  // A [rank, in], and the rows of B that are not zero, [classes, rank]
};

// A and B of every parameter, in the order of AdapterDescription::parameters, each row-major.
struct Adapter {
  std::vector<std::vector<float>> lora_a, lora_b;
  std::optional<HeadAdapter> head;
};

// The directions of an update and how much of each it takes, [q]; its rate and decay, where the program's rule has them.
struct Update {
  std::vector<int64_t> seeds;
  std::vector<float> coeffs;
  float rate = 0, decay = 1;
};

struct TrainStep {
  std::vector<float> losses;  // [G]
  float update_norm;          // 0 without an update
};

// At the target positions, as the LM head sees them, and what it gives for the candidates without an adapter of its own.
struct HeadStates {
  std::vector<float> hidden, outputs;  // [E, K, in], [E, K, classes]
};

class HostAdapter;

// Not thread-safe. What goes wrong is an Error that names the program and the method, with ExecuTorch's name of the error.
class Program {
 public:
  // Loads every method. threads: of the process's pool, 0 for what it has; an Error if another Program lives that uses it with
  // another number.
  explicit Program(const std::string& path, int64_t threads = 0);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  const std::string& path() const { return path_; }
  const Description& description() const { return description_; }

  // First the update, if there is one, then the losses of the groups, each perturbed by coeffs[g] along the direction of
  // seeds[g].
  TrainStep train_step(const Batch& batch, const std::vector<int64_t>& seeds, const std::vector<float>& coeffs,
                       const std::optional<Update>& update);
  // Logits of the unperturbed model at the target positions, [E, K, C]; the batch has exactly evaluation_rows rows.
  std::vector<float> evaluate(const Batch& batch);
  // The same of a batch for evaluate(), but before the head. Throws Error if the description has no head.
  HeadStates head_states(const Batch& batch);
  // The logits [vocabulary] that follow the last of some tokens, which go behind the first `before` ones in the key-value
  // cache: up to `chunk` tokens. `active`, one for each, says where the adapters act if there are invocation tokens, else it is
  // not read. Throws Error if the description has no generation.
  std::vector<float> next_logits(const std::vector<int64_t>& tokens, const std::vector<float>& active, int64_t before);
  // How often the adapter was changed: what the cache holds is then that of another model.
  int64_t changes() const { return changes_; }
  // The update of B by the program's rule; the L2 norm of the change, weight decay apart.
  float update(const Update& update);
  Adapter adapter();
  // Where every B lies, in the order of the parameters: what is written there is in the next forward, and counts as a change of
  // the adapter. Throws Error, the first time, if the program does not show it.
  const std::vector<float*>& writable_lora_b();
  // Forgets what the optimizer keeps of earlier updates, too.
  void set_lora_b(const std::vector<std::vector<float>>& lora_b);
  // None for a head without an adapter. Throws Error if there is one and the description has no head, or another shape.
  void set_head(std::optional<HeadAdapter> head);
  // Forgets only that.
  void reset_optimizer();

 private:
  void close();  // of a constructor that fails
  void check_length(int64_t length) const;
  // To what next_logits returns: the logits, and the states that they are made of.
  void add_readout(std::vector<std::vector<float>>& outputs) const;
  std::vector<std::vector<float>> run_evaluate(const Batch& batch);
  // What get_adapter returns: in a delegated program LoRA-B of the export, in all the head's adapter of the export.
  Adapter exported();

  struct Methods;  // keeps ExecuTorch's headers out of this one

  std::string path_;
  std::unique_ptr<Methods> methods_;
  Description description_;
  std::unique_ptr<HostAdapter> host_;  // of a delegated program; else the adapter lies in buffers of the methods
  std::vector<float*> writable_lora_b_;
  std::optional<HeadAdapter> head_;
  int64_t changes_ = 0;
  std::vector<float> head_rows_;  // what it adds to the rows of the candidates, [classes, in]
};

// Without loading the methods that train.
Description read_description(const std::string& path);

}  // namespace mobizo::trainer
