"""One binary convolution against everything else that runs a convolution: ``python -m bnnedge.benchmarks.ops``."""
