"""The documentation site: ``sphinx-build -W --keep-going -b html docs docs/_build``. Needs no network."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parents[1])]

from e2net import __version__  # noqa: E402 - found by the path above

project = "e2net"
author = "the e2net authors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "made_pages"]
exclude_patterns = ["_build"]

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]

autodoc_member_order = "groupwise"
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
# As docstrings of this project mean it: `name` is code.
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "e2net"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
