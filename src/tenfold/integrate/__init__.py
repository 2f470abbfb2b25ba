"""Integration: bring cells of several batches together without erasing biology."""

from tenfold.catalog import lazy_classes

__getattr__, __dir__ = lazy_classes(__name__)
