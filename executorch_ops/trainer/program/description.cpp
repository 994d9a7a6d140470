#include "description.h"

#include <algorithm>
#include <limits>
#include <set>

#include "../files/errors.h"

namespace mobizo::trainer {
namespace {

constexpr int64_t kFormat = 1;

// The member called `name`, converted by `convert`, whose errors get the name in front.
template <typename Convert>
auto field(const Json& json, const std::string& name, Convert convert) {
  const Json& value = json[name];
  return blaming(name, [&] { return convert(value); });
}

std::string string_field(const Json& json, const std::string& name) {
  return field(json, name, [](const Json& value) { return value.as_string(); });
}

// A size of a tensor, or what is compared with one: ExecuTorch's sizes are int32.
constexpr int64_t kMostSize = std::numeric_limits<int32_t>::max();

int64_t checked_size(const Json& value, int64_t least) {
  const int64_t size = value.as_int();
  if (size < least) fail("expected at least ", least, ", got ", size);
  if (size > kMostSize) fail("expected at most ", kMostSize, ", got ", size);
  return size;
}

int64_t size_field(const Json& json, const std::string& name, int64_t least) {
  return field(json, name, [&](const Json& value) { return checked_size(value, least); });
}

std::vector<int64_t> shape_field(const Json& json, const std::string& name) {
  return field(json, name, [](const Json& value) {
    const Json::Array& sizes = value.as_array();
    if (sizes.size() != 2) fail("expected two sizes, got ", value.dump());
    return std::vector<int64_t>{checked_size(sizes[0], 1), checked_size(sizes[1], 1)};
  });
}

AdapterParameter parse_parameter(const Json& json) {
  AdapterParameter parameter{};
  parameter.name = string_field(json, "name");
  blaming(parameter.name, [&] {
    parameter.stream = field(json, "stream", [](const Json& value) { return value.as_int(); });
    parameter.lora_a = shape_field(json, "lora_a");
    parameter.lora_b = shape_field(json, "lora_b");
    parameter.scaling = field(json, "scaling", [](const Json& value) { return value.as_double(); });
    if (parameter.lora_a[0] != parameter.lora_b[1]) fail("lora_a and lora_b are of different rank");
  });
  return parameter;
}

void check(const Description& d) {
  const bool two_sided = d.estimator == "two_sided";
  if (!two_sided && d.estimator != "one_sided") fail("estimator must be two_sided or one_sided, got '", d.estimator, "'");
  const int64_t groups = two_sided ? 2 * d.queries : d.queries + 1;
  if (d.groups != groups) fail("groups must be ", groups, " for ", d.queries, " queries ", d.estimator, ", got ", d.groups);
  if (d.max_length < d.min_length) fail("max_length must be at least ", d.min_length, ", got ", d.max_length);
  if (d.pad_token >= d.vocabulary) fail("pad_token must be below ", d.vocabulary, ", got ", d.pad_token);
  if (d.invocation_tokens) {
    const auto tokens = static_cast<int64_t>(d.invocation_tokens->size());
    if (tokens < 1) fail("invocation_tokens must be at least 1");
    if (d.tail_length < tokens || d.tail_length >= d.max_length)
      fail("tail_length must be from ", tokens, " to ", d.max_length - 1, ", got ", d.tail_length);
  }
  if (d.candidate_tokens && d.candidate_tokens->size() < 2) fail("candidate_tokens must be at least 2");
  if (d.parameters.empty()) fail("the adapter has no parameters");
  std::set<std::string> names;
  for (const AdapterParameter& parameter : d.parameters)
    if (!names.insert(parameter.name).second) fail("the adapter has two parameters called ", parameter.name);
}

}  // namespace

int64_t Description::columns(int64_t before) const {
  return dynamic_length ? std::max(before + tail_length, min_length) : max_length;
}

Description parse_description(const std::string& text) {
  const Json json = parse_json(text);
  const int64_t format = size_field(json, "format", 1);
  if (format != kFormat) fail("expected a program of format ", kFormat, ", got ", format);
  Description d{};
  d.text = text;
  field(json, "model", [&](const Json& model) {
    d.model_name = string_field(model, "name");
    d.architecture = string_field(model, "architecture");
    d.fingerprint = string_field(model, "fingerprint");
  });
  d.quantization = string_field(json, "quantization");
  d.queries = size_field(json, "queries", 1);
  d.batch_size = size_field(json, "batch_size", 1);
  d.groups = size_field(json, "groups", 1);
  d.estimator = string_field(json, "estimator");
  d.distribution = string_field(json, "distribution");
  if (json.find("optimizer") != nullptr) d.rule = field(json, "optimizer", parse_update_rule);
  d.min_length = size_field(json, "min_length", 1);
  d.max_length = size_field(json, "max_length", 1);
  d.dynamic_length = field(json, "dynamic_length", [](const Json& value) { return value.as_bool(); });
  d.targets_per_row = size_field(json, "targets_per_row", 1);
  if (!json["invocation_tokens"].is_null()) {
    d.invocation_tokens = field(json, "invocation_tokens", [](const Json& value) { return value.as_ints(); });
    d.tail_length = size_field(json, "tail_length", 1);
  }
  if (!json["candidate_tokens"].is_null())
    d.candidate_tokens = field(json, "candidate_tokens", [](const Json& value) { return value.as_ints(); });
  d.vocabulary = size_field(json, "vocabulary", 1);
  d.pad_token = size_field(json, "pad_token", 0);
  d.evaluation_rows = size_field(json, "evaluation_rows", 1);
  if (!json["tokenizer"].is_null()) d.tokenizer = string_field(json, "tokenizer");
  field(json, "adapter", [&](const Json& adapter) {
    d.adapter_config = field(adapter, "config", [](const Json& config) { return Json(config.as_object()).dump(); });
    for (const Json& parameter : adapter["parameters"].as_array()) d.parameters.push_back(parse_parameter(parameter));
  });
  check(d);
  return d;
}

}  // namespace mobizo::trainer
