"""Annotation: labels of cell types, learnt from labelled cells or from markers, with a confidence to rely on."""

from tenfold.catalog import lazy_classes

__getattr__, __dir__ = lazy_classes(__name__)
