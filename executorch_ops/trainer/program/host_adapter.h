// What a delegated program leaves to its host: LoRA-B, the optimizer's state, the directions and the updates, by the kernels of
// csrc/kernels, with the bits of a program that has our ops.
#pragma once

#include <cstdint>
#include <vector>

#include "description.h"

namespace mobizo::trainer {

struct Update;

class HostAdapter {
 public:
  // lora_b: of every parameter, with which it begins; the state begins with zeros.
  HostAdapter(const Description& description, std::vector<std::vector<float>> lora_b);

  const std::vector<std::vector<float>>& lora_b() const { return lora_b_; }
  std::vector<std::vector<float>>& writable_lora_b() { return lora_b_; }
  // Forgets the state, too.
  void set_lora_b(const std::vector<std::vector<float>>& lora_b);
  // By the program's rule; the L2 norm of the change of all B, weight decay apart.
  float update(const Update& update);

  // The directions of the groups, [G], for the forward that follows.
  void draw(const std::vector<int64_t>& seeds, const std::vector<float>& coeffs);
  // Of every parameter: u [G, out], which carries the coefficients, and v [G, r].
  const std::vector<std::vector<float>>& u() const { return u_; }
  const std::vector<std::vector<float>>& v() const { return v_; }

 private:
  const Description& description_;
  std::vector<std::vector<float>> lora_b_, first_state_, second_state_, u_, v_;
};

}  // namespace mobizo::trainer
