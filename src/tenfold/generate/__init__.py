"""Generation of synthetic cells."""

from tenfold.catalog import lazy_classes

__getattr__, __dir__ = lazy_classes(__name__)
