#include "../simd/vec.h"
#include "entry.h"

#define MOBIZO_STRING(x) #x
#define MOBIZO_NAME(x) MOBIZO_STRING(x)

namespace mobizo::MOBIZO_ISA {

extern const Kernels kernels;
const Kernels kernels = {MOBIZO_NAME(MOBIZO_ISA), signs,          noise,        perturb,        zo_momentum,   zo_adam, zo_sign,
                         mp_lora_shrink,          mp_lora_expand, mp_lora_pack, mp_lora_slopes, mp_lora_outer, mp_outer};

}  // namespace mobizo::MOBIZO_ISA
