// A training program (.pte) in memory: its methods with their types, its one adapter, its description.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dataset.h"
#include "description.h"

namespace mobizo::trainer {

// A and B of every parameter, in the order of Description::parameters, each row-major.
struct Adapter {
  std::vector<std::vector<float>> lora_a, lora_b;
};

// The directions of an update and how much of each to add to LoRA-B, [q].
struct Update {
  std::vector<int64_t> seeds;
  std::vector<float> coeffs;
};

struct TrainStep {
  std::vector<float> losses;  // [G]
  float update_norm;
};

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

  // First B += the update, then the losses of the groups, each perturbed by coeffs[g] along the direction of seeds[g].
  TrainStep train_step(const Batch& batch, const std::vector<int64_t>& seeds, const std::vector<float>& coeffs,
                       const Update& update);
  // Logits of the unperturbed model at the target positions, [E, K, C]; the batch has exactly evaluation_rows rows.
  std::vector<float> evaluate(const Batch& batch);
  // B += the update; the L2 norm of the change.
  float update(const Update& update);
  // An update that changes nothing.
  Update no_update() const;
  Adapter adapter();
  void set_lora_b(const std::vector<std::vector<float>>& lora_b);

 private:
  void check_length(int64_t length) const;

  struct Methods;  // keeps ExecuTorch's headers out of this one

  std::string path_;
  std::unique_ptr<Methods> methods_;
  Description description_;
};

// Without loading the methods that train.
Description read_description(const std::string& path);

}  // namespace mobizo::trainer
