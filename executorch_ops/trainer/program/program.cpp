#include "program.h"

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <cmath>
#include <iterator>
#include <new>
#include <numeric>
#include <utility>

#include "../files/checksum.h"
#include "../files/errors.h"
#include "../files/safetensors.h"
#include "arenas.h"
#include "host_adapter.h"
#include "inputs.h"
#include "runtime.h"
#include "signature.h"

namespace mobizo::trainer {
namespace {

using executorch::aten::ScalarType;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::EValue;

constexpr const char* kDescribe = "mobizo_description";

template <typename T>
constexpr ScalarType kScalarType = ScalarType::Float;
template <>
constexpr ScalarType kScalarType<int64_t> = ScalarType::Long;

// The arguments of a call. They refer to the caller's vectors, whose sizes are checked against the shapes.
class Arguments {
 public:
  template <typename T>
  Arguments& add(const char* name, const std::vector<T>& values, const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    if (static_cast<int64_t>(values.size()) != count)
      fail(name, " must have shape ", shape_text(shape), ", got ", values.size(), " elements");
    const std::vector<executorch::aten::SizesType> sizes(shape.begin(), shape.end());
    // The methods only read their inputs.
    tensors_.push_back(from_blob(const_cast<T*>(values.data()), sizes, kScalarType<T>));
    values_.emplace_back(tensors_.back());
    return *this;
  }
  // The next arguments by their description.
  Arguments& add(const std::vector<MethodInput>& expected, const std::vector<std::vector<float>>& values) {
    for (const std::vector<float>& value : values) {
      const MethodInput& input = expected[values_.size()];
      add(input.name.c_str(), value, input.shape);
    }
    return *this;
  }
  const std::vector<EValue>& values() const { return values_; }

 private:
  std::vector<TensorPtr> tensors_;
  std::vector<EValue> values_;
};

// Module, with the buffers of the methods that it has loaded.
class LoadedModule : public Module {
 public:
  using Module::Module;
  executorch::runtime::Result<executorch::aten::Tensor> buffer(const std::string& method, std::string_view name) {
    return methods_.at(method).method->get_attribute(name);
  }
};

std::unique_ptr<LoadedModule> open_module(const std::string& path) {
  initialize_runtime();
  const LogCapture log;
  auto module = std::make_unique<LoadedModule>(path, Module::LoadMode::Mmap);
  const auto verification = executorch::runtime::Program::Verification::InternalConsistency;
  log.check(module->load(verification), path + ": not a program of ExecuTorch");
  static_cast<void>(arena_sizes(*module, path));
  return module;
}

// The name of the buffer within the model: that of the weight, but for its end.
std::string buffer_name(const AdapterParameter& parameter) {
  constexpr std::string_view kWeight = ".weight";
  const std::string& name = parameter.name;
  const bool weight = name.size() > kWeight.size() && name.compare(name.size() - kWeight.size(), kWeight.size(), kWeight) == 0;
  return name.substr(0, name.size() - (weight ? kWeight.size() : 0)) + ".lora_b";
}

// Whether `name` is `path`, or ends with a dot and that.
bool ends_with_path(std::string_view name, std::string_view path) {
  if (name.size() < path.size() || name.substr(name.size() - path.size()) != path) return false;
  return name.size() == path.size() || name[name.size() - path.size() - 1] == '.';
}

Description describe(Module& module, const std::string& path) {
  const LogCapture log;
  const auto names = module.method_names();
  log.check(names.error(), path + ": the methods cannot be listed");
  if (names->count(kDescribe) == 0) fail(path, ": not a training program: it has no method ", kDescribe);
  const auto outputs = module.execute(kDescribe);
  log.check(outputs.error(), path + ": " + kDescribe);
  if (outputs->size() != 1 || !outputs->front().isString()) fail(path, ": ", kDescribe, " must return a string");
  const auto text = outputs->front().toString();
  return blaming(path + ": description", [&] { return parse_description({text.data(), text.size()}); });
}

}  // namespace

struct Program::Methods {
  Methods(const std::string& path, int64_t threads)
      : pool(threads), weights(check_program(path)), module(open_module(path)), arenas(arena_sizes(*module, path)) {}
  ~Methods() { module.reset(); }  // before what it computes in

  void load(const std::string& path, const Signature& signature) {
    const LogCapture log;
    const std::string where = path + ": method " + signature.method;
    const auto meta = module->method_meta(signature.method);
    log.check(meta.error(), where);
    check_signature(signature, *meta, where);
    log.check(module->load_method(signature.method, arenas.allocator(), nullptr, weights.options()),
              where + " cannot be loaded");
  }

  // Outputs lie in memory that the next call may overwrite.
  std::vector<std::vector<float>> run(const std::string& path, const char* name, const Arguments& arguments) {
    check_threads();
    const LogCapture log;
    const std::string where = path + ": method " + name;
    const auto outputs = module->execute(name, arguments.values());
    log.check(outputs.error(), where);
    std::vector<std::vector<float>> copies;
    for (const EValue& output : *outputs) {
      if (!output.isTensor() || output.toTensor().scalar_type() != ScalarType::Float)
        fail(where, " must return float32 tensors");
      const executorch::aten::Tensor& tensor = output.toTensor();
      const float* data = tensor.const_data_ptr<float>();
      copies.emplace_back(data, data + tensor.numel());
    }
    return copies;
  }

  // Where the B of a parameter lies, in all methods; nullptr if the program does not say.
  float* lora_b(const AdapterParameter& parameter) {
    constexpr const char* kOwner = "update";
    const std::string wanted = buffer_name(parameter);
    const auto meta = module->method_meta(kOwner);
    for (size_t i = 0; meta.ok() && i < meta->num_attributes(); ++i) {
      const auto info = meta->attribute_tensor_meta(i);
      if (!info.ok() || !ends_with_path(info->name(), wanted)) continue;
      const auto found = module->buffer(kOwner, info->name());
      if (!found.ok() || found->scalar_type() != ScalarType::Float) return nullptr;
      return found->numel() == parameter.lora_b[0] * parameter.lora_b[1] ? found->mutable_data_ptr<float>() : nullptr;
    }
    return nullptr;
  }

  ThreadPoolUse pool;
  WeightCacheUse weights;
  std::unique_ptr<LoadedModule> module;
  Arenas arenas;  // of all methods: what one leaves in a buffer is there for the others
};

Program::Program(const std::string& path, int64_t threads) : path_(path) {
  try {
    methods_ = std::make_unique<Methods>(path, threads);
    description_ = describe(*methods_->module, path);
    // Loading a method after another has run would reset the adapter that they share.
    for (const Signature& signature : signatures(description_)) methods_->load(path, signature);
    Adapter first = exported();
    if (description_.delegated) host_ = std::make_unique<HostAdapter>(description_, std::move(first.lora_b));
    set_head(std::move(first.head));
  } catch (const std::bad_alloc&) {
    close();
    fail(path, ": there is not enough memory to load the program");
  } catch (...) {
    close();
    throw;
  }
}

Program::~Program() = default;

void Program::close() {
  const LogCapture log;  // XNNPACK tells of what it has not finished
  methods_.reset();
}

Description read_description(const std::string& path) {
  check_program(path);
  return describe(*open_module(path), path);
}

TrainStep Program::train_step(const Batch& batch, const std::vector<int64_t>& seeds, const std::vector<float>& coeffs,
                              const std::optional<Update>& update) {
  const Description& d = description_;
  const std::vector<int64_t> inputs{d.batch_size, batch.length}, targets{d.batch_size, d.targets_per_row};
  check_length(batch.length);
  Arguments arguments;
  arguments.add("input_ids", batch.input_ids, inputs).add("attention_mask", batch.attention_mask, inputs);
  arguments.add("target_positions", batch.target_positions, targets).add("target_ids", batch.target_ids, targets);
  const bool plain = d.optimizer.plain() && host_ == nullptr;  // then the update is part of the method
  if (host_ == nullptr) arguments.add("seeds", seeds, {d.groups}).add("coeffs", coeffs, {d.groups});
  const auto queries = static_cast<size_t>(d.queries);
  const Update none{std::vector<int64_t>(queries), std::vector<float>(queries)};
  float norm = 0;
  if (plain && update) ++changes_;
  if (plain) {
    const Update& given = update ? *update : none;
    arguments.add("update_seeds", given.seeds, {d.queries}).add("update_coeffs", given.coeffs, {d.queries});
  } else if (update) {
    norm = this->update(*update);
  }
  if (host_ != nullptr) {
    host_->draw(seeds, coeffs);
    const std::vector<MethodInput> expected = train_step_inputs(d);
    for (const auto* factors : {&host_->lora_b(), &host_->u(), &host_->v()}) arguments.add(expected, *factors);
  }
  if (d.head) arguments.add("head", head_rows_, {d.classes(), d.head->shape[1]});
  const auto outputs = methods_->run(path_, "train_step", arguments);
  if (static_cast<int64_t>(outputs[0].size()) != d.groups || (plain && outputs[1].size() != 1))
    fail(path_, ": train_step must return ", d.groups, " losses", plain ? " and a norm" : "");
  return {outputs[0], plain ? outputs[1][0] : norm};
}

std::vector<float> Program::evaluate(const Batch& batch) { return std::move(run_evaluate(batch)[0]); }

HeadStates Program::head_states(const Batch& batch) {
  const Description& d = description_;
  if (!d.head) fail(path_, ": the program gives no states");
  const std::vector<float> both = std::move(run_evaluate(batch)[1]);
  HeadStates states;
  const auto width = static_cast<std::ptrdiff_t>(d.head->shape[1]), row = width + static_cast<std::ptrdiff_t>(d.classes());
  for (auto at = both.begin(); at != both.end(); at += row) {
    states.hidden.insert(states.hidden.end(), at, at + width);
    states.outputs.insert(states.outputs.end(), at + width, at + row);
  }
  return states;
}

std::vector<std::vector<float>> Program::run_evaluate(const Batch& batch) {
  const Description& d = description_;
  check_length(batch.length);
  const std::vector<int64_t> inputs{d.evaluation_rows, batch.length};
  Arguments arguments;
  arguments.add("input_ids", batch.input_ids, inputs).add("attention_mask", batch.attention_mask, inputs);
  arguments.add("target_positions", batch.target_positions, {d.evaluation_rows, d.targets_per_row});
  if (host_ != nullptr) arguments.add(evaluate_inputs(d), host_->lora_b());
  if (d.head) arguments.add("head", head_rows_, {d.classes(), d.head->shape[1]});
  std::vector<std::vector<float>> outputs = methods_->run(path_, "evaluate", arguments);
  const int64_t positions = d.evaluation_rows * d.targets_per_row, expected = positions * d.classes();
  if (static_cast<int64_t>(outputs[0].size()) != expected)
    fail(path_, ": evaluate must return ", expected, " logits, got ", outputs[0].size());
  const int64_t states = d.head ? positions * (d.head->shape[1] + d.classes()) : 0;
  if (d.head && static_cast<int64_t>(outputs[1].size()) != states)
    fail(path_, ": evaluate must return ", states, " elements of states, got ", outputs[1].size());
  return outputs;
}

std::vector<float> Program::next_logits(const std::vector<int64_t>& tokens, const std::vector<float>& active, int64_t before) {
  const Description& d = description_;
  if (!d.generation) fail(path_, ": the program cannot write: it was exported without a context");
  const auto given = static_cast<int64_t>(tokens.size());
  if (given < 1 || given > d.generation->chunk || before < 0 || before + given > d.generation->context)
    fail(path_, ": from 1 to ", d.generation->chunk, " tokens must go behind ", before, " within the context of ",
         d.generation->context, ", got ", given);
  std::vector<int64_t> positions(static_cast<size_t>(given)), seen(static_cast<size_t>(before + given));
  std::iota(positions.begin(), positions.end(), before);
  std::iota(seen.begin(), seen.end(), int64_t{0});
  Arguments arguments;
  arguments.add("input_ids", tokens, {1, given}).add("positions", positions, {1, given});
  arguments.add("key_positions", seen, {before + given});
  if (d.invocation_tokens) arguments.add("active", active, {1, given, 1});
  if (host_ != nullptr)
    for (size_t i = 0; i < host_->lora_b().size(); ++i)
      arguments.add(d.adapter.parameters[i].name.c_str(), host_->lora_b()[i], d.adapter.parameters[i].lora_b);
  auto outputs = methods_->run(path_, "next_logits", arguments);
  if (static_cast<int64_t>(outputs[0].size()) != d.vocabulary)
    fail(path_, ": the logits must be ", d.vocabulary, ", got ", outputs[0].size());
  const bool acts = !d.invocation_tokens || active.back() != 0;
  if (head_ && acts) add_readout(outputs);
  return std::move(outputs[0]);
}

void Program::add_readout(std::vector<std::vector<float>>& outputs) const {
  const Description& d = description_;
  const auto width = static_cast<size_t>(d.head->shape[1]), classes = static_cast<size_t>(d.classes());
  const std::vector<float>& states = outputs[1];
  if (states.size() != width + classes) fail(path_, ": the states must be ", width + classes, ", got ", states.size());
  for (size_t c = 0; c < classes; ++c) {
    double logit = states[width + c];
    for (size_t i = 0; i < width; ++i) logit += double{head_rows_[c * width + i]} * double{states[i]};
    logit *= d.head->scale;
    if (d.head->soft_cap > 0) logit = d.head->soft_cap * std::tanh(logit / d.head->soft_cap);
    outputs[0][static_cast<size_t>((*d.candidate_tokens)[c])] = static_cast<float>(logit);
  }
}

float Program::update(const Update& update) {
  ++changes_;
  if (host_ != nullptr) return host_->update(update);
  const int64_t queries = description_.queries;
  Arguments arguments;
  const UpdateRule& rule = description_.optimizer;
  const std::vector<float> rate{update.rate}, decay{update.decay};
  arguments.add("update_seeds", update.seeds, {queries}).add("update_coeffs", update.coeffs, {queries});
  if (rule.takes_rate()) arguments.add("update_lr", rate, {1});
  if (rule.weight_decay > 0) arguments.add("update_decay", decay, {1});
  const auto outputs = methods_->run(path_, "update", arguments);
  if (outputs[0].size() != 1) fail(path_, ": update must return a norm");
  return outputs[0][0];
}

Adapter Program::adapter() {
  Adapter adapter = exported();
  if (host_ != nullptr) adapter.lora_b = host_->lora_b();
  adapter.head = head_;
  return adapter;
}

Adapter Program::exported() {
  auto outputs = methods_->run(path_, "get_adapter", {});
  const auto count = static_cast<std::ptrdiff_t>(description_.adapter.parameters.size());
  const auto first = std::make_move_iterator(outputs.begin());
  Adapter adapter{{first, first + count}, {first + count, first + 2 * count}, {}};
  if (description_.head && description_.head->rank > 0)
    adapter.head = HeadAdapter{description_.head->rank, std::move(outputs[outputs.size() - 2]), std::move(outputs.back())};
  for (size_t i = 0; i < description_.adapter.parameters.size(); ++i) {
    const AdapterParameter& p = description_.adapter.parameters[i];
    if (static_cast<int64_t>(adapter.lora_a[i].size()) != p.lora_a[0] * p.lora_a[1] ||
        static_cast<int64_t>(adapter.lora_b[i].size()) != p.lora_b[0] * p.lora_b[1])
      fail(path_, ": get_adapter returns ", p.name, " in another shape than the description has");
  }
  return adapter;
}

const std::vector<float*>& Program::writable_lora_b() {
  ++changes_;
  if (host_ != nullptr) {
    writable_lora_b_.clear();
    for (std::vector<float>& b : host_->writable_lora_b()) writable_lora_b_.push_back(b.data());
  } else if (writable_lora_b_.empty()) {
    std::vector<float*> found;
    for (const AdapterParameter& parameter : description_.adapter.parameters) {
      found.push_back(methods_->lora_b(parameter));
      if (found.back() == nullptr) fail(path_, ": the program does not show where LoRA-B of ", parameter.name, " lies");
    }
    writable_lora_b_ = std::move(found);
  }
  return writable_lora_b_;
}

void Program::set_lora_b(const std::vector<std::vector<float>>& lora_b) {
  const auto& parameters = description_.adapter.parameters;
  if (lora_b.size() != parameters.size()) fail("the adapter must have ", parameters.size(), " LoRA-B, got ", lora_b.size());
  ++changes_;
  if (host_ != nullptr) return host_->set_lora_b(lora_b);
  Arguments arguments;
  for (size_t i = 0; i < lora_b.size(); ++i) arguments.add(parameters[i].name.c_str(), lora_b[i], parameters[i].lora_b);
  methods_->run(path_, "set_adapter", arguments);
}

void Program::set_head(std::optional<HeadAdapter> head) {
  const Description& d = description_;
  if (!d.head) {
    if (head) fail(path_, ": the program takes no adapter of its LM head");
    return;
  }
  const auto classes = static_cast<size_t>(d.classes()), width = static_cast<size_t>(d.head->shape[1]);
  const auto rank = static_cast<size_t>(head ? head->rank : 0);
  if (head && (head->lora_a.size() != rank * width || head->words.size() != classes * rank))
    fail("the adapter of ", d.head->name, " must have A of shape ", shape_text({head->rank, d.head->shape[1]}),
         " and words of ", shape_text({d.classes(), head->rank}));
  head_rows_.assign(classes * width, 0);
  for (size_t i = 0; i < head_rows_.size(); ++i) {
    double sum = 0;
    for (size_t k = 0; k < rank; ++k)
      sum += double{head->words[i / width * rank + k]} * double{head->lora_a[k * width + i % width]};
    head_rows_[i] = static_cast<float>(sum);
  }
  head_ = std::move(head);
}

void Program::reset_optimizer() {
  if (description_.optimizer.has_state()) set_lora_b(adapter().lora_b);
}

void Program::check_length(int64_t length) const {
  const Description& d = description_;
  const int64_t least = d.dynamic_length ? d.min_length : d.max_length;
  if (length < least || length > d.max_length)
    fail("input_ids must have from ", least, " to ", d.max_length, " columns, got ", length);
}

}  // namespace mobizo::trainer
