#include "description.h"

#include <algorithm>
#include <set>

#include "../files/errors.h"
#include "inputs.h"
#include "members.h"

namespace mobizo::trainer {
namespace {

constexpr int64_t kFormat = 1, kDelegatedFormat = 2;

ModelDescription parse_model(const Json& json) {
  Members members(json);
  ModelDescription model{members.text("name"), members.text("architecture"), members.text("fingerprint")};
  members.end();
  return model;
}

AdapterParameter parse_parameter(const Json& json) {
  Members members(json);
  AdapterParameter parameter{};
  parameter.name = members.text("name");
  blaming(parameter.name, [&] {
    parameter.stream = members.get("stream", [](const Json& value) { return value.as_int(); });
    parameter.lora_a = members.shape("lora_a");
    parameter.lora_b = members.shape("lora_b");
    parameter.scaling = members.get("scaling", [](const Json& value) { return value.as_double(); });
    members.end();
    if (parameter.lora_a[0] != parameter.lora_b[1]) fail("lora_a and lora_b are of different rank");
  });
  return parameter;
}

AdapterDescription parse_adapter(const Json& json) {
  Members members(json);
  AdapterDescription adapter;
  adapter.config = members.get("config", [](const Json& value) { return Json(value.as_object()).dump(); });
  members.get("parameters", [&](const Json& value) {
    for (const Json& parameter : value.as_array()) adapter.parameters.push_back(parse_parameter(parameter));
  });
  members.end();
  return adapter;
}

HeadDescription parse_head(const Json& json) {
  Members members(json);
  HeadDescription head{};
  head.name = members.text("name");
  head.shape = members.shape("shape");
  head.scale = members.get("scale", [](const Json& value) { return value.as_double(); });
  head.soft_cap = members.get("soft_cap", [](const Json& value) {
    const double cap = value.is_null() ? 0 : value.as_double();
    if (!value.is_null() && !(cap > 0)) fail("expected a positive number, got ", value.dump());
    return cap;
  });
  head.rank = members.size("rank", 0);
  head.pattern = members.text("pattern");
  head.target_modules = members.get("target_modules", [](const Json& value) {
    if (!value.is_string())
      for (const Json& name : value.as_array()) static_cast<void>(name.as_string());
    return value;
  });
  members.end();
  return head;
}

void check_head(const HeadDescription& head, const Description& d) {
  if (!d.candidate_tokens) fail("head needs candidate_tokens");
  for (const int64_t token : *d.candidate_tokens)
    if (token < 0 || token >= head.shape[0])
      fail("candidate_tokens must be from 0 to ", head.shape[0] - 1, ", the rows of the head, got ", token);
  if (head.rank > d.classes()) fail("head: rank must be at most ", d.classes(), ", got ", head.rank);
}

void check_texts(const TextsDescription& texts, const Description& d) {
  if (!d.tokenizer) fail("texts needs tokenizer");
  const size_t candidates = d.candidate_tokens ? d.candidate_tokens->size() : 0;
  if (texts.prompt && texts.prompt->words.size() != candidates)
    fail("texts: prompt: expected ", candidates, " words, one for each of candidate_tokens, got ", texts.prompt->words.size());
}

GenerationDescription parse_generation(const Json& json) {
  constexpr int64_t kLeast = 3;  // of both sizes, below which no program is exported
  Members members(json);
  GenerationDescription generation{members.size("context", kLeast), members.size("chunk", kLeast),
                                   members.get("stop_tokens", [](const Json& value) { return value.as_ints(); })};
  members.end();
  if (generation.chunk > generation.context)
    fail("chunk must be at most ", generation.context, ", the context, got ", generation.chunk);
  return generation;
}

void check_generation(const GenerationDescription& generation, const Description& d) {
  for (const int64_t token : generation.stop_tokens)
    if (token < 0 || token >= d.vocabulary)
      fail("generation: stop_tokens must be from 0 to ", d.vocabulary - 1, ", got ", token);
}

void check_delegated(const Json& value) {
  const std::string& lowering = value.as_string();
  if (lowering != "delegated") fail("expected delegated in a program of format ", kDelegatedFormat, ", got '", lowering, "'");
}

void check(const Description& d) {
  if (d.delegated && d.distribution != "outer") fail("lowering delegated needs distribution outer, got ", d.distribution);
  const bool two_sided = d.estimator == "two_sided", one_sided = d.estimator == "one_sided";
  if (!two_sided && !one_sided && d.estimator != "centred")
    fail("estimator must be one of two_sided, one_sided, centred, got '", d.estimator, "'");
  const int64_t groups = two_sided ? 2 * d.queries : one_sided ? d.queries + 1 : d.queries;
  if (d.groups != groups) fail("groups must be ", groups, " for ", d.queries, " queries ", d.estimator, ", got ", d.groups);
  if (d.max_length < d.min_length) fail("max_length must be at least ", d.min_length, ", got ", d.max_length);
  if (d.pad_token >= d.vocabulary) fail("pad_token must be below ", d.vocabulary, ", got ", d.pad_token);
  if (d.invocation_tokens.has_value() != (d.tail_length > 0))
    fail("invocation_tokens and tail_length must be both given, or both null");
  if (d.invocation_tokens) {
    const auto tokens = static_cast<int64_t>(d.invocation_tokens->size());
    if (tokens < 1) fail("invocation_tokens must be at least 1");
    if (d.tail_length < tokens || d.tail_length >= d.max_length)
      fail("tail_length must be from ", tokens, " to ", d.max_length - 1, ", got ", d.tail_length);
  }
  if (d.candidate_tokens && d.candidate_tokens->size() < 2) fail("candidate_tokens must be at least 2");
  if (d.adapter.parameters.empty()) fail("the adapter has no parameters");
  std::set<std::string> names;
  for (const AdapterParameter& parameter : d.adapter.parameters)
    if (!names.insert(parameter.name).second) fail("the adapter has two parameters called '", parameter.name, "'");
  if (d.head) check_head(*d.head, d);
  if (d.texts) check_texts(*d.texts, d);
  if (d.generation) check_generation(*d.generation, d);
}

}  // namespace

int64_t Description::columns(int64_t before) const {
  return dynamic_length ? std::max(before + tail_length, min_length) : max_length;
}

Description parse_description(const std::string& text) {
  const Json json = parse_json(text);
  Members members(json);
  const int64_t format = members.size("format", 1);
  if (format != kFormat && format != kDelegatedFormat)
    fail("expected a program of format ", kFormat, " or ", kDelegatedFormat, ", got ", format);
  Description d{};
  d.text = text;
  d.delegated = format == kDelegatedFormat;
  members.get("versions", [](const Json& versions) {  // for people
    for (const auto& [name, version] : versions.as_object()) blaming(name, [&, &version = version] { version.as_string(); });
  });
  d.model = members.get("model", parse_model);
  d.quantization = members.text("quantization");
  d.queries = members.size("queries", 1);
  d.batch_size = members.size("batch_size", 1);
  d.groups = members.size("groups", 1);
  d.estimator = members.text("estimator");
  d.distribution = members.text("distribution");
  d.optimizer = members.get("optimizer", parse_update_rule);
  d.min_length = members.size("min_length", 1);
  d.max_length = members.size("max_length", 1);
  d.dynamic_length = members.get("dynamic_length", [](const Json& value) { return value.as_bool(); });
  d.targets_per_row = members.size("targets_per_row", 1);
  d.invocation_tokens = members.tokens("invocation_tokens");
  d.tail_length = members.get("tail_length", [](const Json& value) { return value.is_null() ? 0 : checked_size(value, 1); });
  d.candidate_tokens = members.tokens("candidate_tokens");
  d.vocabulary = members.size("vocabulary", 1);
  d.pad_token = members.size("pad_token", 0);
  d.evaluation_rows = members.size("evaluation_rows", 1);
  d.tokenizer = members.get("tokenizer", [](const Json& value) {
    return value.is_null() ? std::nullopt : std::optional<std::string>(value.as_string());
  });
  d.adapter = members.get("adapter", parse_adapter);
  if (json.find("head") != nullptr) d.head = members.get("head", parse_head);
  if (json.find("texts") != nullptr) d.texts = members.get("texts", parse_texts);
  if (json.find("generation") != nullptr) d.generation = members.get("generation", parse_generation);
  if (d.delegated) {
    members.get("lowering", check_delegated);
    members.get("inputs", [](const Json&) {});  // looked at once the rest is known to be sound
  }
  members.end();
  check(d);
  if (d.delegated) blaming("inputs", [&] { check_inputs(json["inputs"], d); });
  return d;
}

}  // namespace mobizo::trainer
