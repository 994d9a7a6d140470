#include "run_header.h"

#include "../files/blake2b.h"
#include "../files/errors.h"

namespace mobizo::trainer {
namespace {

// Over the factors, LoRA-A or LoRA-B, of all parameters.
std::string fingerprint(const Description& description, const std::vector<std::vector<float>>& factors,
                        std::vector<int64_t> AdapterParameter::* shape) {
  Blake2b hash;
  const auto add = [&](const std::string& text) { hash.update(text.c_str(), text.size() + 1); };  // the zero byte, too
  for (size_t i = 0; i < factors.size(); ++i) {
    const AdapterParameter& parameter = description.adapter.parameters[i];
    const std::vector<int64_t>& sizes = parameter.*shape;
    add(parameter.name);
    add(message(sizes[0], ",", sizes[1]));
    hash.update(factors[i].data(), factors[i].size() * sizeof(float));
  }
  return hash.hex();
}

Json parameters_of(const Description& description) {
  Json::Array parameters;
  for (const AdapterParameter& p : description.adapter.parameters)
    parameters.push_back(
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
  return {{"base_fingerprint", d.model.fingerprint},
          {"base_dtype", d.quantization == "none" ? "float32" : d.quantization},
          {"parameters", parameters_of(d)},
          {"invocation_tokens", tokens_of(d.invocation_tokens)},
          {"lora_a", fingerprint(d, adapter.lora_a, &AdapterParameter::lora_a)},
          {"lora_b", fingerprint(d, adapter.lora_b, &AdapterParameter::lora_b)}};
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
                      {"data", dataset.checksum()},
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
