// zo_momentum, zo_adam and zo_sign against one value at a time.
#pragma once

#include "harness.h"

namespace mobizo {

struct OptimizerTensors {
  Buffer param, first, second;
};

// `step` is the reference of `kernel`, `point` sets the pointers of args.
template <typename Args, typename Step, typename Point>
void optimizer_case(const char* op, void (*Kernels::*kernel)(const Args&, int64_t, int64_t), Args args,
                    const OptimizerTensors& before, Step step, Point point, Targets& targets, Report& report) {
  const int64_t tasks = tasks_of(args);
  std::vector<uint32_t> param, first, second;
  std::vector<double> change(static_cast<size_t>(tasks));
  for (int64_t e = 0; e < args.numel; ++e) {
    const reference::Element stepped = step(args, reference::Element{before.param[e], before.first[e], before.second[e]}, e);
    param.push_back(reference::narrow(args.dtype, stepped.param));
    first.push_back(reference::to_bits(stepped.first));
    second.push_back(reference::to_bits(stepped.second));
    const float difference = reference::widen(args.dtype, param.back()) - before.param[e];
    change[task_of(args, e)] += double{difference} * difference;
  }
  for (Target& target : targets) {
    const std::string name =
        text(target.kernels.name, " ", op, " ", name_of(args.distribution), " ", name_of(args.dtype), ", ", args.numel,
             " elements, ", args.count, " seeds, decay ", args.decay, ", stream ", args.stream);
    const auto signs = make_signs(target.kernels, args, args.seeds, args.count);
    for (const bool piecewise : {false, true}) {
      OptimizerTensors got = before;
      Guarded<double> squares(change.size());
      args.squared_change = piecewise ? nullptr : squares.data();
      point(args, got);
      run(target.kernels.*kernel, args, 0, tasks, piecewise);
      const std::string form = name + (piecewise ? ", task by task" : "");
      report.check(form + ", param", difference(got.param, param));
      report.check(form + ", first state", difference(got.first, first));
      report.check(form + ", second state", difference(got.second, second));
      if (piecewise) continue;
      bool close = true;
      for (size_t i = 0; i < squares.size(); ++i)
        close = close && std::fabs(squares.data()[i] - change[i]) <= 1e-12 * change[i];
      report.check(form + ", squared change", close ? "" : "beyond the error of a sum in double");
      for (const Buffer* buffer : {&got.param, &got.first, &got.second}) target.digest.add(*buffer);
      target.digest.add(squares);
    }
  }
}

inline void optimizer_cases(Targets& targets, Report& report) {
  Random random(4);
  const Directions directions(random);
  for (const Shape shape : kShapes)
    for (const DType dtype : kDTypes)
      for (const Distribution distribution : kDistributions)
        for (const float decay : {1.0f, 0.9f}) {
          const int64_t numel = shape.numel();
          OptimizerTensors before{Buffer(dtype, numel), Buffer(DType::kFloat32, numel), Buffer(DType::kFloat32, numel)};
          for (int64_t i = 0; i < numel; ++i) {
            before.param.set(i, 3.0f * random.uniform());
            before.first.set(i, random.uniform());
            before.second.set(i, std::fabs(random.uniform()));
          }
          const int64_t count = random.pick({0, 1, 2, 6, 37}), stream = random.seed();  // in this order on every machine
          const Guarded<int64_t> seeds = directions.seeds(count);
          const Guarded<float> coeffs = directions.coeffs(count);
          const PerturbArgs update = perturb_args(dtype, shape, seeds, coeffs, stream, decay, distribution);
          optimizer_case(
              "zo_momentum", &Kernels::zo_momentum, ZoMomentumArgs{update, nullptr, 0.9f}, before, reference::momentum_step,
              [](ZoMomentumArgs& args, OptimizerTensors& at) {
                args.param = at.param.data();
                args.momentum = static_cast<float*>(at.first.data());
              },
              targets, report);
          optimizer_case(
              "zo_adam", &Kernels::zo_adam, ZoAdamArgs{update, nullptr, nullptr, 0.02f, 0.9f, 0.1f, 0.999f, 0.001f, 1e-8f},
              before, reference::adam_step,
              [](ZoAdamArgs& args, OptimizerTensors& at) {
                args.param = at.param.data();
                args.exp_avg = static_cast<float*>(at.first.data());
                args.exp_avg_sq = static_cast<float*>(at.second.data());
              },
              targets, report);
          optimizer_case(
              "zo_sign", &Kernels::zo_sign, ZoSignArgs{update, 0.02f}, before, reference::sign_step,
              [](ZoSignArgs& args, OptimizerTensors& at) { args.param = at.param.data(); }, targets, report);
        }
}

}  // namespace mobizo
