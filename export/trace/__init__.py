"""The way from a model to the export graph: ``torch.export`` of the deploy form, one handler per ATen operator.

The handlers stand in one file a family; importing a family registers its handlers.
"""

from bnnedge.export.trace import activation, arithmetic, convolution, pooling, shape
from bnnedge.export.trace.tracer import trace

__all__ = ["activation", "arithmetic", "convolution", "pooling", "shape", "trace"]
