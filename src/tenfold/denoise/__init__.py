"""Denoising of expression. Do not test differential expression or correlation on denoised values."""

from tenfold.catalog import lazy_classes

__getattr__, __dir__ = lazy_classes(__name__)
