"""RNA velocity: where the expression of each cell is heading, from spliced and unspliced counts."""

from tenfold.catalog import lazy_classes

__getattr__, __dir__ = lazy_classes(__name__)
