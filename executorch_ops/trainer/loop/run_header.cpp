#include "run_header.h"

#include "../files/blake2b.h"
#include "../files/errors.h"
#include "../program/adapter.h"

namespace mobizo::trainer {
namespace {

// Over the factors, LoRA-A or LoRA-B, of all parameters, and that of the head, if it has an adapter.
std::string fingerprint(const Description& description, const std::vector<std::vector<float>>& factors,
                        std::vector<int64_t> AdapterParameter::* shape, const std::vector<float>& head,
                        const std::vector<int64_t>& head_shape) {
  Blake2b hash;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& sizes, const std::vector<float>& values) {
    for (const std::string& text : {name, message(sizes[0], ",", sizes[1])})
      hash.update(text.c_str(), text.size() + 1);  // the zero byte, too
    hash.update(values.data(), values.size() * sizeof(float));
  };
  for (size_t i = 0; i < factors.size(); ++i) {
    const AdapterParameter& parameter = description.adapter.parameters[i];
    add(parameter.name, parameter.*shape, factors[i]);
  }
  if (!head.empty()) add(description.head->name, head_shape, head);
  return hash.hex();
}

Json parameters_of(const Description& description) {
  Json::Array parameters;
  for (const AdapterParameter& p : description.adapter.parameters)
    parameters.emplace_back(
        Json::Object{{"name", p.name}, {"shape", Json::list(p.lora_b)}, {"stream", p.stream}, {"scaling", p.scaling}});
  return parameters;
}

Json tokens_of(const std::optional<std::vector<int64_t>>& tokens) {
  return Json::list(tokens.value_or(std::vector<int64_t>{}));
}

// The fields that the program decides on, from the type of its base on in the order of the file.
Json::Object program_fields(Program& program) {
  const Description& d = program.description();
  const Adapter adapter = program.adapter();
  std::vector<float> head_a, head_b;
  std::vector<int64_t> shape_a, shape_b;
  if (adapter.head) {
    head_a = adapter.head->lora_a;
    head_b = head_lora_b(*adapter.head, d);
    shape_a = {adapter.head->rank, d.head->shape[1]};
    shape_b = {d.head->shape[0], adapter.head->rank};
  }
  return {{"base_fingerprint", d.model.fingerprint},
          {"base_dtype", d.quantization == "none" ? "float32" : d.quantization},
          {"parameters", parameters_of(d)},
          {"invocation_tokens", tokens_of(d.invocation_tokens)},
          {"lora_a", fingerprint(d, adapter.lora_a, &AdapterParameter::lora_a, head_a, shape_a)},
          {"lora_b", fingerprint(d, adapter.lora_b, &AdapterParameter::lora_b, head_b, shape_b)}};
}

// Of the data, and of what is made of them unless that is the default.
std::string data_text(const Dataset& dataset, const TrainOptions& options) {
  if (options.objective == nullptr && options.reward_shaping == "none") return dataset.checksum();
  const std::string objective = options.objective == nullptr ? "cross-entropy" : options.objective->text();
  return dataset.checksum() + " " + objective + " " + options.reward_shaping;
}

}  // namespace

Json journal_header(Program& program, const Dataset& dataset, const TrainOptions& options) {
  const Description& description = program.description();
  Json::Object header{{"run_seed", options.run_seed},
                      {"queries", description.queries},
                      {"eps", options.eps},
                      {"lr", options.lr},
                      {"lr_schedule", options.lr_schedule},
                      {"steps", options.steps},
                      {"normalize", options.normalize},
                      {"distribution", description.distribution},
                      {"estimator", description.estimator},
                      {"optimizer", description.optimizer.json()},
                      {"batch_size", description.batch_size},
                      {"data", data_text(dataset, options)},
                      {"candidate_tokens", tokens_of(description.candidate_tokens)}};
  for (Json::Member& member : program_fields(program)) header.push_back(std::move(member));
  return header;
}

void check_replayable(const std::string& path, const Journal& journal, Program& program) {
  const Description& description = program.description();
  Json::Object expected{{"queries", description.queries},
                        {"distribution", description.distribution},
                        {"optimizer", description.optimizer.json()}};
  for (Json::Member& member : program_fields(program)) {
    // The type of the base decides on losses, which a replay does not compute.
    const Json* there = journal.header.find(member.first);
    if (member.first != "base_dtype" && there != nullptr && !there->is_null()) expected.push_back(std::move(member));
  }
  check_journal_header(path, journal, expected);
}

}  // namespace mobizo::trainer
