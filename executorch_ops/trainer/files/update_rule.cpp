#include "update_rule.h"

#include <cmath>

#include "errors.h"

namespace mobizo::trainer {
namespace {

double number(const Json& json, const char* name, bool in_range(double)) {
  const double value = json[name].as_double();
  if (!std::isfinite(value) || !in_range(value)) fail("optimizer: ", name, " is out of range: ", json[name].dump());
  return value;
}

bool is_mean(double value) { return value >= 0 && value < 1; }
// As the ops have it.
bool is_positive(double value) { return static_cast<float>(value) > 0 && std::isfinite(static_cast<float>(value)); }
bool is_not_negative(double value) { return value >= 0; }

}  // namespace

double UpdateRule::coefficient(double lr, int64_t queries) const {
  return (name == "sgd" ? -lr : 1.0) / static_cast<double>(queries);
}

double UpdateRule::rate(double lr, int64_t updates) const {
  if (name != "adam") return lr;
  const auto count = static_cast<double>(updates + 1);
  return lr * std::sqrt(1 - std::pow(beta2, count)) / (1 - std::pow(beta1, count));
}

Json UpdateRule::json() const {
  Json::Object members{{"name", name}};
  if (name == "sgd") members.emplace_back("momentum", momentum);
  if (name == "adam") members.insert(members.end(), {{"beta1", beta1}, {"beta2", beta2}, {"eps", eps}});
  members.emplace_back("weight_decay", weight_decay);
  return members;
}

UpdateRule parse_update_rule(const Json& json) {
  UpdateRule rule;
  rule.name = json["name"].as_string();
  if (rule.name == "adam") {
    rule.beta1 = number(json, "beta1", is_mean);
    rule.beta2 = number(json, "beta2", is_mean);
    rule.eps = number(json, "eps", is_positive);
  } else if (rule.name == "sgd") {
    rule.momentum = number(json, "momentum", is_mean);
  } else if (rule.name != "sign") {
    fail("optimizer must be sgd, adam or sign, got '", rule.name, "'");
  }
  rule.weight_decay = number(json, "weight_decay", is_not_negative);
  const Json expected = rule.json();
  for (const auto& [name, value] : json.as_object())
    if (expected.find(name) == nullptr) fail("unknown ", name);
  return rule;
}

}  // namespace mobizo::trainer
