// The schemas of torch.ops.mobizo.*; each op's implementation registers itself in the file of its name.
#include "checks.h"

#define MOBIZO_MP_LORA_TAIL \
  "Tensor lora_a, Tensor lora_b, Tensor seeds, Tensor coeffs, float scaling, int stream, str distribution=\"gaussian\""

STABLE_TORCH_LIBRARY(mobizo, m) {
  m.def("noise(SymInt[] size, Tensor seed, int stream, str distribution=\"gaussian\", *, ScalarType? dtype=None) -> Tensor");
  m.def(
      "noise.out(SymInt[] size, Tensor seed, int stream, str distribution=\"gaussian\", *, ScalarType? dtype=None,"
      " Tensor(a!) out) -> Tensor(a!)");
  m.def(
      "perturb_(Tensor(a!) self, Tensor seeds, Tensor coeffs, int stream, float decay=1.0, str distribution=\"gaussian\")"
      " -> Tensor(a!)");
  m.def(
      "foreach_perturb_(Tensor(a!)[] self, Tensor seeds, Tensor coeffs, int[] streams, float decay=1.0,"
      " str distribution=\"gaussian\") -> ()");
  m.def(
      "zo_update(Tensor(a!) param, Tensor seeds, Tensor coeffs, int stream, float decay=1.0, str distribution=\"gaussian\")"
      " -> Tensor");
  m.def(
      "zo_update.out(Tensor(a!) param, Tensor seeds, Tensor coeffs, int stream, float decay=1.0, str distribution=\"gaussian\","
      " *, Tensor(b!) out) -> Tensor(b!)");
  m.def("mp_lora(Tensor base, Tensor x, " MOBIZO_MP_LORA_TAIL ") -> Tensor");
  m.def("mp_lora.out(Tensor base, Tensor x, " MOBIZO_MP_LORA_TAIL ", *, Tensor(a!) out) -> Tensor(a!)");
  m.def("mp_lora_(Tensor(a!) base, Tensor x, " MOBIZO_MP_LORA_TAIL ") -> Tensor(a!)");
  m.def("mp_lora_linear(Tensor x, Tensor weight, Tensor? bias, " MOBIZO_MP_LORA_TAIL ") -> Tensor");
  m.def("cpu_capability() -> str");
}

namespace mobizo {
namespace {

std::string cpu_capability() { return kernels().name; }

}  // namespace
}  // namespace mobizo

STABLE_TORCH_LIBRARY_IMPL(mobizo, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&mobizo::cpu_capability));
}
