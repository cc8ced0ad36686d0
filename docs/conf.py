"""How the documentation site is built: `make docs`. Any warning is an error; nothing is fetched."""

import sys
from pathlib import Path

import ellzero

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

project = "ellzero"
author = "the authors of ellzero"
version = release = ellzero.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "accessible",
    "mathml",
    "notebooks",
    "public_names",
]
exclude_patterns = ["extensions"]
smartquotes = False  # two dashes begin an option
nitpicky = True
nitpick_ignore_regex = [
    # there is no network in a build, so nothing links to what other projects document
    (r"py:.*", r"(torch|numpy|collections|contextlib|ctypes|pathlib|typing|os|pydantic)\..*"),
    (r"py:class", r"Finite"),  # a float
    # what is in no public list is named in signatures, but documented in its source alone
    (r"py:class", r"ellzero(\.[a-z]\w*)+\.\w+"),
]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

maximum_signature_line_length = 72
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"Form": "ellzero.penalties.Form"}
napoleon_custom_sections = [("Source", "notes_style")]
default_role = "name"

html_theme = "furo"
html_title = "ellzero"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
