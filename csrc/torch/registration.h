// The namespace of the ops, torch.ops.mobizo unless the build says otherwise: several builds of these files can then live in
// one process. torch's own macros paste the name together before they look at what it stands for.
#pragma once

#include <torch/csrc/stable/library.h>

#ifndef MOBIZO_OPS
#define MOBIZO_OPS mobizo
#endif
#define MOBIZO_EXPANDED(macro, ...) macro(__VA_ARGS__)
#define MOBIZO_LIBRARY(m) MOBIZO_EXPANDED(STABLE_TORCH_LIBRARY, MOBIZO_OPS, m)
#define MOBIZO_LIBRARY_IMPL(key, m) MOBIZO_EXPANDED(STABLE_TORCH_LIBRARY_IMPL, MOBIZO_OPS, key, m)
