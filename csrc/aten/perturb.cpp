#include "perturb.h"

#include <algorithm>
#include <utility>

namespace mobizo {

PerturbArgs perturb_args(const Tensor& param, const Directions& directions, int64_t stream, double decay,
                         const std::string& distribution, const char* op, const char* argument) {
  check_cpu(param, op, argument);
  check_no_overlap(param, op, argument);
  PerturbArgs args{};
  args.dtype = dtype_of(param, op, argument);
  args.numel = param.numel();
  args.seeds = directions.seed_data();
  args.coeffs = directions.coeff_data();
  args.count = directions.count();
  args.stream = stream;
  args.decay = static_cast<float>(decay);
  args.distribution = distribution_of(distribution, op);
  return args;
}

namespace {

Tensor perturb_(Tensor self, const Tensor& seeds, const Tensor& coeffs, int64_t stream, double decay,
                std::string distribution) {
  constexpr const char* op = "perturb_";
  const Directions directions = directions_of(seeds, coeffs, op);
  PerturbArgs args = perturb_args(self, directions, stream, decay, distribution, op, "self");
  const Kernels& k = kernels();
  ContiguousUpdate update(self);
  args.param = update.data();
  run_perturb(k, args, ParallelFor{});
  update.finish();
  return self;
}

// Two threads must not meet in one parameter.
void check_distinct(const std::vector<Tensor>& self, const char* op) {
  std::vector<std::pair<const void*, size_t>> addresses;
  for (size_t i = 0; i < self.size(); ++i)
    if (self[i].numel() > 0) addresses.emplace_back(self[i].const_data_ptr(), i);
  std::sort(addresses.begin(), addresses.end());
  for (size_t i = 1; i < addresses.size(); ++i)
    MOBIZO_CHECK(addresses[i].first != addresses[i - 1].first, op, "self must hold each parameter once, got self[",
                 addresses[i - 1].second, "] and self[", addresses[i].second, "] at one address");
}

// The tasks of all parameters stand in one row, so that many small parameters cost one parallel region.
void foreach_perturb_(std::vector<Tensor> self, const Tensor& seeds, const Tensor& coeffs, std::vector<int64_t> streams,
                      double decay, std::string distribution) {
  constexpr const char* op = "foreach_perturb_";
  MOBIZO_CHECK(streams.size() == self.size(), op, "streams must have one entry per parameter (", self.size(), "), got ",
               streams.size());
  const Directions directions = directions_of(seeds, coeffs, op);
  std::vector<PerturbArgs> args;
  std::vector<int64_t> first_task{0};
  for (size_t i = 0; i < self.size(); ++i) {
    const std::string argument = "self[" + std::to_string(i) + "]";
    args.push_back(perturb_args(self[i], directions, streams[i], decay, distribution, op, argument.c_str()));
    first_task.push_back(first_task.back() + flat_tasks(args[i].numel));
  }
  check_distinct(self, op);
  const Kernels& k = kernels();
  std::vector<ContiguousUpdate> updates;
  updates.reserve(self.size());
  for (size_t i = 0; i < self.size(); ++i) args[i].param = updates.emplace_back(self[i]).data();
  torch::stable::parallel_for(0, first_task.back(), kNoiseGrain, [&](int64_t begin, int64_t end) {
    size_t i = std::upper_bound(first_task.begin(), first_task.end(), begin) - first_task.begin() - 1;
    for (; begin < end; ++i) {
      const int64_t stop = std::min(end, first_task[i + 1]);
      k.perturb(args[i], begin - first_task[i], stop - first_task[i]);
      begin = stop;
    }
  });
  for (ContiguousUpdate& update : updates) update.finish();
}

}  // namespace
}  // namespace mobizo

STABLE_TORCH_LIBRARY_IMPL(mobizo, CPU, m) {
  m.impl("perturb_", TORCH_BOX(&mobizo::perturb_));
  m.impl("foreach_perturb_", TORCH_BOX(&mobizo::foreach_perturb_));
}
