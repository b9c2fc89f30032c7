"""The GPU kernels and the training step against PyTorch's own: ``python -m bnnedge.benchmarks.gpu``."""
