"""Measuring exported files: devices, runner, rows, report."""

if __name__ != "bnnedge.benchmarks":
    raise ImportError("import bnnedge.benchmarks, not benchmarks: this folder is a part of the bnnedge package")
