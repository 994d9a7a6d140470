// What a step makes of its estimate: an optimizer and the numbers that do not change during a run.
#pragma once

#include <cstdint>
#include <string>

#include "json.h"

namespace mobizo::trainer {

struct UpdateRule {
  std::string name = "sgd";                       // or "adam", "sign"
  double momentum = 0;                            // of "sgd"
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;  // of "adam"
  double weight_decay = 0;                        // decoupled

  // B += sum_k coeffs[k] z_k and nothing else: an update of zeros changes nothing.
  bool plain() const { return name == "sgd" && momentum == 0 && weight_decay == 0; }
  // Whether the optimizer keeps something of the updates before.
  bool has_state() const { return name == "adam" || momentum != 0; }
  // Whether an update is given its rate; that of "sgd" is in the coefficients.
  bool takes_rate() const { return name != "sgd"; }

  // What a projected gradient is multiplied by to give its direction's coefficient: -lr / q for "sgd", else 1 / q.
  double coefficient(double lr, int64_t queries) const;
  // The rate of an update after `updates` others: lr, for "adam" corrected for both means having begun at 0.
  double rate(double lr, int64_t updates) const;
  // What an update multiplies B by.
  double decay(double lr) const { return 1 - lr * weight_decay; }

  Json json() const;
};

// Throws Error, naming the member, unless `json` is what UpdateRule::json gives of a rule. UpdateRule.from_json of
// mobizo_kernels/optim/update_rule.py refuses the same in the same words.
UpdateRule parse_update_rule(const Json& json);
// Throws Error unless it is a learning rate, which is not part of a rule here: schedules change it.
void check_lr(double lr);

}  // namespace mobizo::trainer
