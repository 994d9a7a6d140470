#include "update.h"

namespace mobizo {

void Updates::check_apart(const char* op) const {
  struct Region {
    const char *begin, *end;
    Argument argument;
    size_t order;  // written ones first, as in the messages
  };
  std::vector<Region> regions;
  regions.reserve(written_.size() + read_.size());
  size_t order = 0;
  for (const std::vector<Named>* list : {&written_, &read_})
    for (const auto& [tensor, name] : *list) {
      const char* begin = static_cast<const char*>(tensor.const_data_ptr());
      regions.push_back({begin, begin + bytes_spanned(tensor), {tensor, name.c_str()}, order++});
    }
  std::sort(regions.begin(), regions.end(), [](const Region& a, const Region& b) { return a.begin < b.begin; });
  for (size_t i = 0; i < regions.size(); ++i)
    for (size_t j = i + 1; j < regions.size() && regions[j].begin < regions[i].end; ++j) {
      const auto& [first, second] =
          std::minmax(regions[i], regions[j], [](const Region& a, const Region& b) { return a.order < b.order; });
      if (first.order < written_.size()) mobizo::check_apart(first.argument, second.argument, op);
    }
}

void Updates::begin(const char* op) {
  check_apart(op);
  for (const std::vector<Named>* list : {&written_, &read_})
    for (const auto& [tensor, name] : *list) check_no_gradient(tensor, op, name.c_str());
  for (const auto& [tensor, name] : written_) announce_change(tensor, op, name.c_str());
  updates_.reserve(written_.size());
  for (const Named& one : written_) updates_.emplace_back(one.tensor);
}

void Updates::finish() {
  for (ContiguousUpdate& update : updates_) update.finish();
}

PerturbArgs perturb_args(Updates& updates, const Tensor& param, const Directions& directions, int64_t stream, double decay,
                         const std::string& distribution, const char* op, const std::string& argument) {
  check_cpu(param, op, argument.c_str());
  check_no_overlap(param, op, argument.c_str());
  PerturbArgs args{};
  args.dtype = dtype_of(param, op, argument.c_str());
  args.numel = param.numel();
  args.seeds = directions.seed_data();
  args.coeffs = directions.coeff_data();
  args.count = directions.count();
  args.stream = stream;
  args.decay = static_cast<float>(decay);
  set_distribution(args, distribution_of(distribution, op), param.dim(), param.dim() > 0 ? param.size(0) : 1);
  updates.add(param, argument);
  return args;
}

void add_state(Updates& updates, const Tensor& state, const Tensor& param, const char* op, const std::string& argument) {
  check_cpu(state, op, argument.c_str());
  MOBIZO_CHECK(state.scalar_type() == ScalarType::Float, op, argument, " must be float32, got ", name_of(state.scalar_type()));
  bool same = state.dim() == param.dim();
  for (int64_t d = 0; same && d < param.dim(); ++d) same = state.size(d) == param.size(d);
  MOBIZO_CHECK(same, op, argument, " must have the shape of its parameter, ", shape_of(param), ", got ", shape_of(state));
  check_no_overlap(state, op, argument.c_str());
  updates.add(state, argument);
}

float learning_rate(Updates& updates, const Tensor& lr, const char* op) {
  check_cpu(lr, op, "lr");
  MOBIZO_CHECK(lr.scalar_type() == ScalarType::Float && lr.dim() == 1 && lr.numel() == 1, op,
               "lr must be float32 of shape (1,), got ", name_of(lr.scalar_type()), " of shape ", shape_of(lr));
  updates.read(lr, "lr");
  return *static_cast<const float*>(lr.const_data_ptr());
}

void add_norm(Updates& updates, const Tensor& out, const char* op) {
  check_cpu(out, op, "out");
  MOBIZO_CHECK(out.scalar_type() == ScalarType::Float && out.dim() == 1 && out.numel() == 1, op,
               "out must be float32 of shape (1,), got ", name_of(out.scalar_type()), " of shape ", shape_of(out));
  updates.add(out, "out");
}

Tensor empty_norm(const Tensor& param) { return torch::stable::empty({1}, ScalarType::Float, std::nullopt, param.device()); }

std::string element_of(const char* list, size_t index) { return std::string(list) + '[' + std::to_string(index) + ']'; }

}  // namespace mobizo
