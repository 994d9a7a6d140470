// perturb against the contract, and the storage types that it reads and writes.
#pragma once

#include "harness.h"

namespace mobizo {

inline void perturb_cases(Targets& targets, Report& report) {
  Random random(2);
  const Directions directions(random);
  for (const Shape shape : kShapes)
    for (const DType dtype : kDTypes)
      for (const Distribution distribution : kDistributions)
        for (const float decay : {1.0f, 0.9f, 0.0f}) {
          const int64_t numel = shape.numel();
          Buffer before(dtype, numel);
          for (int64_t i = 0; i < numel; ++i) before.set(i, 3.0f * random.uniform());
          const int64_t count = random.pick({1, 2, 6, 37}), stream = random.seed();  // in this order on every machine
          const Guarded<int64_t> seeds = directions.seeds(count);
          const Guarded<float> coeffs = directions.coeffs(count);
          PerturbArgs args = perturb_args(dtype, shape, seeds, coeffs, stream, decay, distribution);
          const int64_t tasks = tasks_of(args);
          std::vector<uint32_t> expected;
          std::vector<double> change(static_cast<size_t>(tasks));
          for (int64_t e = 0; e < numel; ++e) {
            expected.push_back(reference::narrow(dtype, reference::perturbed(args, before[e], e)));
            const float difference = reference::widen(dtype, expected.back()) - before[e];
            change[task_of(args, e)] += double{difference} * difference;
          }
          for (Target& target : targets) {
            const std::string name =
                text(target.kernels.name, " perturb ", name_of(distribution), " ", name_of(dtype), ", ", shape.rows, " x ",
                     shape.columns, " elements, ", args.count, " seeds, decay ", decay, ", stream ", args.stream);
            Buffer whole = before, pieces = before;
            const auto signs = make_signs(target.kernels, args, args.seeds, args.count);
            Guarded<double> got(change.size());
            args.param = whole.data();
            args.squared_change = got.data();
            run(target.kernels.perturb, args, 0, tasks, false);
            report.check(name, difference(whole, expected));
            bool close = true;
            for (size_t i = 0; i < got.size(); ++i) close = close && std::fabs(got.data()[i] - change[i]) <= 1e-12 * change[i];
            report.check(name + ", squared change", close ? "" : "beyond the error of a sum in double");
            args.param = pieces.data();
            args.squared_change = nullptr;
            run(target.kernels.perturb, args, 0, tasks, true);
            report.check(name + ", task by task", difference(pieces, expected));
            target.digest.add(whole);
            target.digest.add(got);
          }
        }
}

// Every 16-bit value, scaled: subnormals, ties, overflow, infinities and NaN go through the loads and the stores.
inline void storage_cases(const Targets& targets, Report& report) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16})
    for (const float decay : {1.0f, 0.7f, 3e-3f, -1234.5f}) {
      Buffer before(dtype, 0x10000);
      for (uint32_t bits = 0; bits < 0x10000; ++bits) before.set_bits(bits, bits);
      for (const Target& target : targets) {
        Buffer out = before;
        const PerturbArgs args{out.data(), dtype, out.size(), nullptr, nullptr, 0, 0, decay, Distribution::kGaussian, nullptr};
        run(target.kernels.perturb, args, 0, tasks_of(args), false);
        std::string problem;
        for (int64_t i = 0; i < out.size() && problem.empty(); ++i) {
          const float value = decay == 1.0f ? before[i] : decay * before[i];
          const uint32_t expected = reference::narrow(dtype, value);
          if (std::isnan(value) ? !std::isnan(out[i]) : out.bits(i) != expected)
            problem = text(std::hex, "0x", i, " became 0x", out.bits(i), ", expected 0x", expected);
        }
        report.check(text(target.kernels.name, " ", name_of(dtype), " times ", decay), problem);
      }
    }
}

}  // namespace mobizo
