"""Clustering of cells on their neighbour graph: ``leiden`` and ``louvain``."""

from tenfold.kernels.communities import leiden, louvain

__all__ = ["leiden", "louvain"]
