"""CUDA C++ kernels of hgru2 for NVIDIA GPUs from Ampere on, compiled at first use."""
