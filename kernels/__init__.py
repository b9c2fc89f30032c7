"""Bit-packed kernels: the bit contract, the slow reference, and fast kernels in C++ and for GPUs."""

if __name__ != "bnnedge.kernels":
    raise ImportError("import bnnedge.kernels, not kernels: this folder is a part of the bnnedge package")
