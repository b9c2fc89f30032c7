"""Bit-packed kernels for NVIDIA GPUs, written in Triton; one op a file. The layout is that of ``kernels.layout``."""
