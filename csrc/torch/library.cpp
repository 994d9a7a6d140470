// The schemas of torch.ops.mobizo.*; each op's implementation registers itself in the file of its name.
#include "checks.h"

#define MOBIZO_MP_LORA_TAIL \
  "Tensor lora_a, Tensor lora_b, Tensor seeds, Tensor coeffs, float scaling, int stream, str distribution=\"gaussian\""

#define MOBIZO_UPDATE_TAIL "float decay=1.0, str distribution=\"gaussian\""
#define MOBIZO_ADAM_NUMBERS "float beta1, float beta2, float eps, "

MOBIZO_LIBRARY(m) {
  m.def("noise(SymInt[] size, Tensor seed, int stream, str distribution=\"gaussian\", *, ScalarType? dtype=None) -> Tensor");
  m.def(
      "noise.out(SymInt[] size, Tensor seed, int stream, str distribution=\"gaussian\", *, ScalarType? dtype=None,"
      " Tensor(a!) out) -> Tensor(a!)");
  m.def("perturb_(Tensor(a!) self, Tensor seeds, Tensor coeffs, int stream, " MOBIZO_UPDATE_TAIL ") -> Tensor(a!)");
  m.def("foreach_perturb_(Tensor(a!)[] self, Tensor seeds, Tensor coeffs, int[] streams, " MOBIZO_UPDATE_TAIL ") -> ()");
  m.def("zo_update(Tensor(a!) param, Tensor seeds, Tensor coeffs, int stream, " MOBIZO_UPDATE_TAIL ") -> Tensor");
  m.def("zo_update.out(Tensor(a!) param, Tensor seeds, Tensor coeffs, int stream, " MOBIZO_UPDATE_TAIL
        ", *, Tensor(b!) out) -> Tensor(b!)");
  m.def(
      "zo_momentum(Tensor(a!) param, Tensor(b!) momentum, Tensor seeds, Tensor coeffs, int stream, float "
      "beta, " MOBIZO_UPDATE_TAIL ") -> Tensor");
  m.def(
      "zo_momentum.out(Tensor(a!) param, Tensor(b!) momentum, Tensor seeds, Tensor coeffs, int stream, float "
      "beta, " MOBIZO_UPDATE_TAIL ", *, Tensor(c!) out) -> Tensor(c!)");
  m.def(
      "foreach_zo_momentum_(Tensor(a!)[] params, Tensor(b!)[] momenta, Tensor seeds, Tensor coeffs, int[] streams, float "
      "beta, " MOBIZO_UPDATE_TAIL ") -> ()");
  m.def(
      "zo_adam(Tensor(a!) param, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor seeds, Tensor coeffs, Tensor lr, int "
      "stream, " MOBIZO_ADAM_NUMBERS MOBIZO_UPDATE_TAIL ") -> Tensor");
  m.def(
      "zo_adam.out(Tensor(a!) param, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor seeds, Tensor coeffs, Tensor lr,"
      " int stream, " MOBIZO_ADAM_NUMBERS MOBIZO_UPDATE_TAIL ", *, Tensor(d!) out) -> Tensor(d!)");
  m.def(
      "foreach_zo_adam_(Tensor(a!)[] params, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor seeds, Tensor coeffs,"
      " Tensor lr, int[] streams, " MOBIZO_ADAM_NUMBERS MOBIZO_UPDATE_TAIL ") -> ()");
  m.def("zo_sign(Tensor(a!) param, Tensor seeds, Tensor coeffs, Tensor lr, int stream, " MOBIZO_UPDATE_TAIL ") -> Tensor");
  m.def("zo_sign.out(Tensor(a!) param, Tensor seeds, Tensor coeffs, Tensor lr, int stream, " MOBIZO_UPDATE_TAIL
        ", *, Tensor(b!) out) -> Tensor(b!)");
  m.def("foreach_zo_sign_(Tensor(a!)[] params, Tensor seeds, Tensor coeffs, Tensor lr, int[] streams, " MOBIZO_UPDATE_TAIL
        ") -> ()");
  m.def("mp_lora(Tensor base, Tensor x, " MOBIZO_MP_LORA_TAIL ") -> Tensor");
  m.def("mp_lora.out(Tensor base, Tensor x, " MOBIZO_MP_LORA_TAIL ", *, Tensor(a!) out) -> Tensor(a!)");
  m.def("mp_lora_(Tensor(a!) base, Tensor x, " MOBIZO_MP_LORA_TAIL ") -> Tensor(a!)");
  m.def("mp_lora_linear(Tensor x, Tensor weight, Tensor? bias, " MOBIZO_MP_LORA_TAIL ") -> Tensor");
  m.def("mp_outer_(Tensor(a!) base, Tensor x, Tensor seeds, Tensor coeffs, int stream, bool transposed=False) -> ()");
  m.def("cpu_capability() -> str");
}

namespace mobizo {
namespace {

std::string cpu_capability() { return kernels().name; }

}  // namespace
}  // namespace mobizo

MOBIZO_LIBRARY_IMPL(CompositeExplicitAutograd, m) { m.impl("cpu_capability", TORCH_BOX(&mobizo::cpu_capability)); }
