"""tlx: transfer learning on a folder of photographs."""

__version__ = "0.1.0"
