"""Measuring exported files, kernels and training: contenders in turns, devices, rows and reports."""

if __name__ != "bnnedge.benchmarks":
    raise ImportError("import bnnedge.benchmarks, not benchmarks: this folder is a part of the bnnedge package")
