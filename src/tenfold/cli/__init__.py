"""The command line: ``tenfold demo``, ``methods``, ``run``, ``compare``, ``report`` and ``doctor``."""

from tenfold.cli.app import app, main

__all__ = ["app", "main"]
