#include "host_adapter.h"

#include <algorithm>
#include <cmath>

#include "../files/safetensors.h"
#include "host_kernels.h"
#include "program.h"

namespace mobizo::trainer {
namespace {

// The kernel over one B; the L2 norm of its change.
template <typename Args>
float run(void (*Kernels::*kernel)(const Args&, int64_t, int64_t), Args args) {
  const Kernels& k = kernels();
  std::vector<double> squared_change(static_cast<size_t>(tasks_of(args)));
  args.squared_change = squared_change.data();
  if (!run_update(k, k.*kernel, args, ParallelFor{})) fail("there is not enough memory for an update");
  return norm_of_change(args);
}

template <typename T>
void check_shape(const std::string& name, const std::vector<T>& values, const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  if (static_cast<int64_t>(values.size()) != count)
    fail(name, " must have shape ", shape_text(shape), ", got ", values.size(), " elements");
}

}  // namespace

HostAdapter::HostAdapter(const Description& description, std::vector<std::vector<float>> lora_b)
    : description_(description), lora_b_(std::move(lora_b)) {
  for (const AdapterParameter& p : description.adapter.parameters) {
    u_.emplace_back(static_cast<size_t>(description.groups * p.lora_b[0]));
    v_.emplace_back(static_cast<size_t>(description.groups * p.lora_b[1]));
  }
  set_lora_b(std::vector<std::vector<float>>(lora_b_));
}

void HostAdapter::set_lora_b(const std::vector<std::vector<float>>& lora_b) {
  const auto& parameters = description_.adapter.parameters;
  for (size_t i = 0; i < parameters.size(); ++i) check_shape(parameters[i].name, lora_b[i], parameters[i].lora_b);
  lora_b_ = lora_b;
  first_state_.clear();
  second_state_.clear();
  if (!description_.optimizer.has_state()) return;
  for (const std::vector<float>& b : lora_b_) first_state_.emplace_back(b.size());
  if (description_.optimizer.name == "adam") second_state_ = first_state_;
}

float HostAdapter::update(const Update& update) {
  check_shape("update_seeds", update.seeds, {description_.queries});
  check_shape("update_coeffs", update.coeffs, {description_.queries});
  const UpdateRule& rule = description_.optimizer;
  float sum = 0;
  for (size_t i = 0; i < lora_b_.size(); ++i) {
    if (rule.weight_decay > 0)
      for (float& value : lora_b_[i]) value *= update.decay;
    const PerturbArgs args = perturb_args(description_.adapter.parameters[i], lora_b_[i].data(), update.seeds, update.coeffs,
                                          description_.distribution);
    float norm = 0;
    if (rule.name == "adam") {
      ZoAdamArgs adam{args, first_state_[i].data(), second_state_[i].data(), 0, 0, 0, 0, 0, 0};
      set_adam(adam, update.rate, rule.beta1, rule.beta2, rule.eps);
      norm = run(&Kernels::zo_adam, adam);
    } else if (rule.name == "sign") {
      norm = run(&Kernels::zo_sign, ZoSignArgs{args, update.rate});
    } else if (rule.momentum != 0) {
      norm = run(&Kernels::zo_momentum, ZoMomentumArgs{args, first_state_[i].data(), static_cast<float>(rule.momentum)});
    } else {
      norm = run(&Kernels::perturb, args);
    }
    sum += norm * norm;
  }
  return std::sqrt(sum);
}

void HostAdapter::draw(const std::vector<int64_t>& seeds, const std::vector<float>& coeffs) {
  const int64_t groups = description_.groups;
  check_shape("seeds", seeds, {groups});
  check_shape("coeffs", coeffs, {groups});
  const Kernels& k = kernels();
  std::vector<float> signs;
  for (size_t i = 0; i < u_.size(); ++i) {
    const AdapterParameter& parameter = description_.adapter.parameters[i];
    const int64_t out = parameter.lora_b[0], rank = parameter.lora_b[1];
    signs.resize(static_cast<size_t>(out + rank));
    float *u = u_[i].data(), *v = v_[i].data();
    for (size_t group = 0; group < seeds.size(); ++group, u += out, v += rank) {
      const NoiseArgs args{signs.data(), DType::kFloat32,  out + rank,
                           seeds[group], parameter.stream, Distribution::kRademacher};
      if (!run_noise(k, args, ParallelFor{})) fail("there is not enough memory for the directions");
      std::transform(signs.data(), signs.data() + out, u, [&](float sign) { return coeffs[group] * sign; });
      std::copy_n(signs.data() + out, rank, v);
    }
  }
}

}  // namespace mobizo::trainer
