"""Whole binary networks against the same topology elsewhere: ``python -m bnnedge.benchmarks.networks``."""
