"""Configuration of the documentation site; `make docs` builds it into docs/_build/html."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "dpdmd"
author = "The dpdmd contributors"
copyright = author
release = version = installed_version("dpdmd")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "mathml", "generated", "code_names"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "dpdmd"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
smartquotes = False  # quotes and dots belong to code more often than not
html_copy_source = False
html_show_sphinx = False
# Every page has to work from a folder without a network: equations are MathML, which browsers draw themselves.
html_math_renderer = "mathml"
math_numfig = False
math_eqref_format = "({number})"

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False

# Types in signatures come from many places that have no page here. What the pages themselves refer to is checked.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!dpdmd\.).*"), (r"py:.*", r"dpdmd\.(?!method\.).*")]
