"""GPU kernels of the ops, in Triton: one source for CUDA and ROCm. Importing this package imports triton."""
