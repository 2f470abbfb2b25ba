"""Sphinx settings. The pages of the methods are written anew before every build."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import generate

from tenfold import __version__

project = "tenfold"
author = "The tenfold authors"
copyright = "the tenfold authors, BSD-3-Clause"
release = version = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

napoleon_google_docstring = False
napoleon_use_rtype = False
default_role = "py:obj"
autodoc_typehints = "none"  # the docstrings say shapes and units, which the types do not
autodoc_member_order = "bysource"
add_module_names = False

html_theme = "furo"
html_title = f"tenfold {__version__}"


def skip_fields(app, what, name, member, skip, options) -> bool | None:
    """Leave out the fields of named tuples, which the docstring of the class describes."""
    return True if type(member).__name__ == "_tuplegetter" else None


def setup(app) -> None:
    """Write the generated pages when a build starts."""
    app.connect("builder-inited", lambda _: generate.write_method_pages(Path(__file__).parent / "methods"))
    app.connect("autodoc-skip-member", skip_fields)
