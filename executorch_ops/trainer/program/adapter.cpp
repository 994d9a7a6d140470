#include "adapter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "../files/errors.h"
#include "../files/json.h"
#include "../files/safetensors.h"

namespace mobizo::trainer {
namespace {

std::vector<float> read_factor(const SafetensorsFile& file, const std::string& parameter, const char* factor,
                               const std::vector<int64_t>& shape) {
  const std::string name = factor_name(parameter, factor);
  std::vector<float> values = file.read<float>(name);
  const std::vector<int64_t>& got = file.tensors().at(name).shape;
  if (got != shape) fail(file.path(), ": tensor '", name, "' must have shape ", shape_text(shape), ", got ", shape_text(got));
  return values;
}

// The member of an object of PEFT's patterns, apart from the others. Those of the head come and go with its adapter.
struct Patterns {
  Patterns(const Json& all, const std::string& pattern) {
    if (all.is_null()) return;
    for (const Json::Member& member : all.as_object()) (member.first == pattern ? own : others).push_back(member);
  }
  Json::Object own, others;
};

// The alpha of an adapter of the head, by which its scaling is 1.
Json head_alpha(const Json& config, int64_t rank) {
  const Json* rslora = config.find("use_rslora");
  const bool root = rslora != nullptr && !rslora->is_null() && rslora->as_bool();
  return root ? Json(std::sqrt(static_cast<double>(rank))) : Json(rank);
}

// PEFT's configuration with an adapter of the head, as adapt_head of mobizo_kernels/lora/head.py makes it.
std::string config_with_head(const Description& description, int64_t rank) {
  const HeadDescription& head = *description.head;
  const Json before = parse_json(description.adapter.config);
  Json::Object config = before.as_object();
  const auto set = [&](const std::string& name, Json value) {
    const auto found = std::find_if(config.begin(), config.end(), [&](const Json::Member& m) { return m.first == name; });
    if (found == config.end())
      config.emplace_back(name, std::move(value));
    else
      found->second = std::move(value);
  };
  const auto set_pattern = [&](const std::string& name, const Json& value) {
    const Json* others = before.find(name);
    Json::Object patterns{{head.pattern, value}};
    for (const Json::Member& other : Patterns(others == nullptr ? Json() : *others, head.pattern).others)
      patterns.push_back(other);
    set(name, std::move(patterns));
  };
  set("target_modules", head.target_modules);
  set_pattern("rank_pattern", rank);
  set_pattern("alpha_pattern", head_alpha(before, rank));
  return Json(std::move(config)).dump();
}

// What decides, beside the matrices, what an adapter computes: LORA_SCALING of mobizo_kernels/conventions.py. PEFT writes all
// of it; another file need not say any. head_rank: of the file's adapter of the head, 0 without one.
void check_scaling(const SafetensorsFile& file, const Description& description, int64_t head_rank) {
  const std::string text = file.metadata("adapter_config");
  if (text.empty()) return;
  const Json config = blaming(file.path() + ": adapter_config", [&] { return parse_json(text); });
  const Json own = parse_json(description.adapter.config);
  for (const char* name : {"r", "lora_alpha", "use_rslora"}) {
    const Json *expected = own.find(name), *got = config.find(name);
    if (expected != nullptr && got != nullptr && *expected != *got)
      fail(file.path(), ": ", name, " must be ", expected->dump(), ", that of the program, got ", got->dump());
  }
  const std::string head = description.head ? description.head->pattern : "";
  for (const char* name : {"rank_pattern", "alpha_pattern"}) {
    const Json *expected = own.find(name), *got = config.find(name);
    if (expected == nullptr || got == nullptr) continue;
    const Patterns patterns(*got, head);
    if (Json(Patterns(*expected, head).others) != Json(patterns.others))
      fail(file.path(), ": ", name, " must be ", expected->dump(), ", that of the program, got ", got->dump());
    const Json wanted = name == std::string("rank_pattern") ? Json(head_rank) : head_alpha(own, head_rank);
    if (head_rank > 0 && (patterns.own.empty() || patterns.own.front().second != wanted))
      fail(file.path(), ": ", name, " must have ", wanted.dump(), " for '", head, "', whose adapter has a scaling of 1, got ",
           got->dump());
  }
}

// The adapter of the head in a file, if it has one.
std::optional<HeadAdapter> read_head(const SafetensorsFile& file, const Description& description) {
  if (!description.head) return std::nullopt;
  const HeadDescription& head = *description.head;
  const std::string name = factor_name(head.name, "A");
  if (!file.has(name)) return std::nullopt;
  const std::vector<int64_t>& shape = file.tensors().at(name).shape;
  const int64_t rank = shape.empty() ? 0 : shape[0], most = description.classes();
  if (rank < 1 || rank > most)
    fail(file.path(), ": tensor '", name, "' must have from 1 to ", most, " rows, got shape ", shape_text(shape));
  HeadAdapter adapter{rank, read_factor(file, head.name, "A", {rank, head.shape[1]}), {}};
  std::vector<float> lora_b = read_factor(file, head.name, "B", {head.shape[0], rank});
  for (const int64_t token : *description.candidate_tokens) {
    const auto row = lora_b.begin() + token * rank;
    adapter.words.insert(adapter.words.end(), row, row + rank);
    std::fill(row, row + rank, 0.0f);
  }
  for (const float value : lora_b)
    if (value != 0)
      fail(file.path(), ": LoRA-B of ", head.name,
           " must be zero but for the rows of the candidate tokens, for a program does not tune it");
  return adapter;
}

}  // namespace

std::string factor_name(const std::string& parameter, const char* factor) {
  constexpr const char* kSuffix = ".weight";
  std::string path = parameter;
  const size_t length = std::strlen(kSuffix);
  if (path.size() > length && path.compare(path.size() - length, length, kSuffix) == 0) path.resize(path.size() - length);
  return "base_model.model." + path + ".lora_" + factor + ".weight";
}

std::vector<float> head_lora_b(const HeadAdapter& head, const Description& description) {
  std::vector<float> lora_b(static_cast<size_t>(description.head->shape[0] * head.rank));
  auto words = head.words.begin();
  for (const int64_t token : *description.candidate_tokens) {
    std::copy(words, words + head.rank, lora_b.begin() + token * head.rank);
    words += head.rank;
  }
  return lora_b;
}

void save_adapter(const std::string& path, const Description& description, const Adapter& adapter) {
  std::vector<NamedTensor> tensors;
  for (size_t i = 0; i < description.adapter.parameters.size(); ++i) {
    const AdapterParameter& parameter = description.adapter.parameters[i];
    tensors.push_back({factor_name(parameter.name, "A"), parameter.lora_a, &adapter.lora_a[i]});
    tensors.push_back({factor_name(parameter.name, "B"), parameter.lora_b, &adapter.lora_b[i]});
  }
  std::string config = description.adapter.config;
  std::vector<float> lora_b;
  if (adapter.head) {
    const HeadDescription& head = *description.head;
    config = config_with_head(description, adapter.head->rank);
    lora_b = head_lora_b(*adapter.head, description);
    tensors.push_back({factor_name(head.name, "A"), {adapter.head->rank, head.shape[1]}, &adapter.head->lora_a});
    tensors.push_back({factor_name(head.name, "B"), {head.shape[0], adapter.head->rank}, &lora_b});
  }
  write_safetensors(path, tensors,
                    {{"format", "pt"}, {"base_fingerprint", description.model.fingerprint}, {"adapter_config", config}});
}

Adapter read_adapter(const std::string& path, const Description& description, const std::vector<std::vector<float>>& lora_a) {
  const SafetensorsFile file(path);
  const std::string base = file.metadata("base_fingerprint");
  if (!base.empty() && base != description.model.fingerprint)
    fail(path, ": the adapter is of another base model: the program's is ", description.model.fingerprint, ", got ", base);
  Adapter adapter{lora_a, {}, read_head(file, description)};
  check_scaling(file, description, adapter.head ? adapter.head->rank : 0);
  std::set<std::string> expected;
  for (size_t i = 0; i < description.adapter.parameters.size(); ++i) {
    const AdapterParameter& parameter = description.adapter.parameters[i];
    const std::vector<float> there = read_factor(file, parameter.name, "A", parameter.lora_a);
    if (std::memcmp(there.data(), lora_a[i].data(), 4 * there.size()) != 0)
      fail(path, ": LoRA-A of ", parameter.name, " is not that of the program, which cannot change it");
    adapter.lora_b.push_back(read_factor(file, parameter.name, "B", parameter.lora_b));
    expected.insert({factor_name(parameter.name, "A"), factor_name(parameter.name, "B")});
  }
  if (adapter.head) expected.insert({factor_name(description.head->name, "A"), factor_name(description.head->name, "B")});
  for (const auto& [name, tensor] : file.tensors())
    if (expected.count(name) == 0) fail(path, ": tensor '", name, "' is not of the program's adapter");
  return adapter;
}

}  // namespace mobizo::trainer
