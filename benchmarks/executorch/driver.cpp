// Steps one method of a program (.pte) when told to, and says how long each took and what memory it needed. The same for every
// program that benchmarks/executorch/bench.py compares, and nothing but ExecuTorch and the ops is in the process.
//
//   executorch_driver PROGRAM METHOD INPUTS THREADS WEIGHT_CACHE
//
// INPUTS is a .safetensors file whose tensors "0", "1", ... are the arguments; WEIGHT_CACHE is 0 or 1. Every method is loaded,
// as in the trainer. In a step of a delegated program, what the host does is timed with it: the update of LoRA-B and the
// drawing of the directions, by the same seeds and coefficients as those of a program with our ops. Each line on standard input
// makes a step; each answer is a line of JSON. A program of first-order training has its parameters updated after each step, by
// SGD.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/backend/options.h>
#include <files/safetensors.h>
#include <program/host_adapter.h>
#include <program/inputs.h>
#include <program/program.h>
#include <program/runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <optional>

namespace {

using namespace mobizo::trainer;
using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::extension::from_blob;
using executorch::extension::make_tensor_ptr;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::EValue;

constexpr float kLearningRate = 1e-3f;

void set_weight_cache(bool enabled) {
  executorch::runtime::BackendOptions<1> options;
  const LogCapture log;
  log.check(options.set_option("weight_cache_enabled", enabled), "weight_cache_enabled");
  log.check(executorch::runtime::set_option("XnnpackBackend", options.view()), "weight_cache_enabled");
}

std::vector<TensorPtr> read_arguments(const std::string& path) {
  const SafetensorsFile file(path);
  std::vector<TensorPtr> arguments;
  for (size_t i = 0; i < file.tensors().size(); ++i) {
    const std::string name = std::to_string(i);
    const auto found = file.tensors().find(name);
    if (found == file.tensors().end()) fail(path, ": no tensor ", name);
    const std::vector<executorch::aten::SizesType> sizes(found->second.shape.begin(), found->second.shape.end());
    arguments.push_back(found->second.dtype == "I64" ? make_tensor_ptr(sizes, file.read<int64_t>(name))
                                                     : make_tensor_ptr(sizes, file.read<float>(name)));
  }
  return arguments;
}

// Bytes of the arenas that the methods share: for each, what the method that needs most of it has planned.
int64_t planned_bytes(Module& module, const std::vector<std::string>& methods) {
  std::vector<int64_t> arenas;
  for (const std::string& name : methods) {
    const auto meta = module.method_meta(name);
    if (!meta.ok()) fail("method ", name, " has no description");
    arenas.resize(std::max(arenas.size(), meta->num_memory_planned_buffers()));
    for (size_t i = 0; i < meta->num_memory_planned_buffers(); ++i)
      arenas[i] = std::max(arenas[i], meta->memory_planned_buffer_size(i).get());
  }
  int64_t total = 0;
  for (const int64_t bytes : arenas) total += bytes;
  return total;
}

// A line of /proc/self/status, in bytes.
int64_t status(const std::string& name) {
  std::ifstream file("/proc/self/status");
  std::string word;
  int64_t kilobytes = 0;
  while (file >> word)
    if (word == name + ":" && file >> kilobytes) return kilobytes * 1024;
  fail("/proc/self/status has no ", name);
}

// Where a method of first-order training returns its gradients and, live, its parameters.
struct Trainables {
  size_t gradients, parameters;
};

std::optional<Trainables> find_trainables(Module& module, const std::vector<std::string>& methods, const std::string& method) {
  const std::string gradients = "__et_training_gradients_index_" + method,
                    parameters = "__et_training_parameters_index_" + method;
  if (std::find(methods.begin(), methods.end(), gradients) == methods.end()) return std::nullopt;
  const auto index = [&](const std::string& name) { return static_cast<size_t>(module.execute(name).get().at(0).toInt()); };
  return Trainables{index(gradients), index(parameters)};
}

void descend(const std::vector<EValue>& outputs, const Trainables& at) {
  for (size_t i = 0; at.parameters + i < outputs.size(); ++i) {
    const Tensor parameter = outputs[at.parameters + i].toTensor();
    const float* gradient = outputs[at.gradients + i].toTensor().const_data_ptr<float>();
    float* value = parameter.mutable_data_ptr<float>();
    for (ssize_t j = 0; j < parameter.numel(); ++j) value[j] -= kLearningRate * gradient[j];
  }
}

// A delegated program's host, as the trainer is: it makes the factors of train_step out of seeds and coefficients.
class Host {
 public:
  // values: the batch, then what a program with our ops is given; the head's are the last of both.
  Host(Module& module, Description description, const std::vector<TensorPtr>& values)
      : description_(std::move(description)),
        adapter_(description_, lora_b_of(module)),
        inputs_(train_step_inputs(description_)),
        batch_(values.begin(), values.begin() + 4),
        seeds_(copy<int64_t>(values[4])),
        coeffs_(copy<float>(values[5])),
        update_{copy<int64_t>(values[6]), copy<float>(values[7])},
        head_(values.begin() + 8, values.end()) {}

  std::vector<EValue> arguments() {
    adapter_.update(update_);
    adapter_.draw(seeds_, coeffs_);
    tensors_ = batch_;
    for (const auto* factors : {&adapter_.lora_b(), &adapter_.u(), &adapter_.v()})
      for (const std::vector<float>& factor : *factors) {
        const std::vector<int64_t>& shape = inputs_[tensors_.size()].shape;
        const std::vector<executorch::aten::SizesType> sizes(shape.begin(), shape.end());
        tensors_.push_back(from_blob(const_cast<float*>(factor.data()), sizes));
      }
    tensors_.insert(tensors_.end(), head_.begin(), head_.end());
    return std::vector<EValue>(tensors_.begin(), tensors_.end());
  }

 private:
  template <typename T>
  static std::vector<T> copy(const TensorPtr& tensor) {
    const T* data = tensor->const_data_ptr<T>();
    return {data, data + tensor->numel()};
  }
  static std::vector<std::vector<float>> lora_b_of(Module& module) {
    const auto outputs = module.execute("get_adapter");
    if (!outputs.ok()) fail("get_adapter failed");
    std::vector<std::vector<float>> lora_b;
    for (size_t i = outputs->size() / 2; i < outputs->size(); ++i) {
      const Tensor tensor = (*outputs)[i].toTensor();
      lora_b.emplace_back(tensor.const_data_ptr<float>(), tensor.const_data_ptr<float>() + tensor.numel());
    }
    return lora_b;
  }

  Description description_;
  HostAdapter adapter_;
  std::vector<MethodInput> inputs_;
  std::vector<TensorPtr> batch_, tensors_;
  std::vector<int64_t> seeds_;
  std::vector<float> coeffs_;
  Update update_;
  std::vector<TensorPtr> head_;
};

std::optional<Host> host_of(Module& module, const std::vector<std::string>& methods, const std::vector<TensorPtr>& values) {
  const char* describe = "mobizo_description";
  if (std::find(methods.begin(), methods.end(), describe) == methods.end()) return std::nullopt;
  const auto text = module.execute(describe).get().at(0).toString();
  Description description = parse_description({text.data(), text.size()});
  if (!description.delegated) return std::nullopt;
  return std::optional<Host>(std::in_place, module, std::move(description), values);
}

void serve(const std::string& path, const std::string& method, const std::string& inputs, int64_t threads, bool weight_cache) {
  const ThreadPoolUse pool(threads);
  set_weight_cache(weight_cache);
  const LogCapture log;  // also of what it says when the module goes
  Module module(path, Module::LoadMode::Mmap, nullptr, nullptr, nullptr, /*share_memory_arenas=*/true);
  const auto names = module.method_names();
  if (!names.ok()) fail(path, ": not a program of ExecuTorch");
  const std::vector<std::string> methods(names->begin(), names->end());
  for (const std::string& name : methods) log.check(module.load_method(name), path + ": method " + name);
  const std::vector<TensorPtr> tensors = read_arguments(inputs);
  std::vector<EValue> arguments(tensors.begin(), tensors.end());
  std::optional<Host> host = host_of(module, methods, tensors);
  const std::optional<Trainables> trainables = find_trainables(module, methods, method);
  std::printf("{\"planned\": %lld}\n", static_cast<long long>(planned_bytes(module, methods)));
  std::fflush(stdout);

  for (std::string line; std::getline(std::cin, line);) {
    const auto start = std::chrono::steady_clock::now();
    if (host) arguments = host->arguments();
    const auto outputs = module.execute(method, arguments);
    log.check(outputs.error(), path + ": method " + method);
    if (trainables) descend(*outputs, *trainables);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const Tensor losses = outputs->at(0).toTensor();
    double loss = 0;
    for (ssize_t i = 0; i < losses.numel(); ++i) loss += losses.const_data_ptr<float>()[i];
    std::printf("{\"seconds\": %.9g, \"loss\": %.9g, \"peak\": %lld, \"anonymous\": %lld}\n", seconds.count(),
                loss / static_cast<double>(losses.numel()), static_cast<long long>(status("VmHWM")),
                static_cast<long long>(status("RssAnon")));
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::cerr << "usage: executorch_driver PROGRAM METHOD INPUTS THREADS WEIGHT_CACHE\n";
    return 2;
  }
  try {
    serve(argv[1], argv[2], argv[3], std::stoll(argv[4]), std::string(argv[5]) == "1");
  } catch (const std::exception& error) {
    std::cerr << "executorch_driver: " << error.what() << '\n';
    return 1;
  }
}
