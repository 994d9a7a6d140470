#include "update.h"

namespace mobizo {
namespace {

Tensor perturb_(Tensor self, const Tensor& seeds, const Tensor& coeffs, int64_t stream, double decay,
                std::string distribution) {
  constexpr const char* op = "perturb_";
  const Directions directions = directions_of(seeds, coeffs, op);
  Updates updates(seeds, coeffs);
  PerturbArgs args = perturb_args(updates, self, directions, stream, decay, distribution, op, "self");
  const Kernels& k = kernels();
  updates.begin(op);
  args.param = updates.data(0);
  run_one(k.perturb, args, updates);
  return self;
}

void foreach_perturb_(std::vector<Tensor> self, const Tensor& seeds, const Tensor& coeffs, std::vector<int64_t> streams,
                      double decay, std::string distribution) {
  constexpr const char* op = "foreach_perturb_";
  check_length(streams, self.size(), op, "streams");
  const Directions directions = directions_of(seeds, coeffs, op);
  Updates updates(seeds, coeffs);
  std::vector<PerturbArgs> args;
  for (size_t i = 0; i < self.size(); ++i)
    args.push_back(perturb_args(updates, self[i], directions, streams[i], decay, distribution, op, element_of("self", i)));
  const Kernels& k = kernels();
  updates.begin(op);
  for (size_t i = 0; i < self.size(); ++i) args[i].param = updates.data(i);
  run_foreach(k.perturb, args, updates);
}

}  // namespace
}  // namespace mobizo

MOBIZO_LIBRARY_IMPL(CPU, m) {
  m.impl("perturb_", TORCH_BOX(&mobizo::perturb_));
  m.impl("foreach_perturb_", TORCH_BOX(&mobizo::foreach_perturb_));
}
