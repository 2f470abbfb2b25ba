"""Spatial domains: regions of a tissue whose cells are alike and lie together."""

from tenfold.catalog import lazy_classes

__getattr__, __dir__ = lazy_classes(__name__)
