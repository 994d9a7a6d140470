#include "update_rule.h"

#include <cmath>
#include <limits>

#include "errors.h"

namespace mobizo::trainer {
namespace {

double number(const Json& json, const char* name) {
  const Json& value = json[name];
  return blaming(name, [&] { return value.as_double(); });
}

bool is_mean(double value) { return value >= 0 && value < 1; }
// As the ops have it.
bool is_positive(double value) { return static_cast<float>(value) > 0 && std::isfinite(static_cast<float>(value)); }

void check(const UpdateRule& rule) {
  const auto shown = [](double value) { return Json(value).dump(); };
  if (!is_mean(rule.momentum)) fail("momentum must be in [0, 1), got ", shown(rule.momentum));
  if (!is_mean(rule.beta1) || !is_mean(rule.beta2))
    fail("betas must be two numbers in [0, 1), got (", shown(rule.beta1), ", ", shown(rule.beta2), ")");
  if (!is_positive(rule.eps)) fail("eps of adam must be positive and finite in float32, got ", shown(rule.eps));
  if (!std::isfinite(rule.weight_decay) || rule.weight_decay < 0)
    fail("weight_decay must be finite and at least 0, got ", shown(rule.weight_decay));
}

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
  const Json& name = json["name"];
  rule.name = blaming("name", [&] { return name.as_string(); });
  if (rule.name == "adam") {
    rule.beta1 = number(json, "beta1");
    rule.beta2 = number(json, "beta2");
    rule.eps = number(json, "eps");
  } else if (rule.name == "sgd") {
    rule.momentum = number(json, "momentum");
  } else if (rule.name != "sign") {
    fail("name must be one of sgd, adam, sign, got '", rule.name, "'");
  }
  rule.weight_decay = number(json, "weight_decay");
  const Json expected = rule.json();
  for (const auto& [name, value] : json.as_object())
    if (expected.find(name) == nullptr) fail("'", name, "' is unknown");
  check(rule);
  return rule;
}

void check_lr(double lr) {
  if (!(lr >= 0 && lr <= double{std::numeric_limits<float>::max()}))
    fail("lr must be at least 0 and finite in float32, got ", lr);
}

}  // namespace mobizo::trainer
