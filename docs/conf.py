"""Configuration of the Sphinx build."""

import os
import shutil
from importlib.metadata import metadata
from pathlib import Path

from sphinx.ext.napoleon import NumpyDocstring

HERE = Path(__file__).parent

# -- Project -----------------------------------------------------------------------------------------------------------

info = metadata("stdenoise")
project = info["Name"]
author = "stdenoise developers"
copyright = f"2026, {author}"
version = release = info["Version"]
repository_url = "https://github.com/stdenoise/stdenoise"

# -- Notebooks ---------------------------------------------------------------------------------------------------------
# They live at the top level, executed. Sphinx reads only files below docs/, so each build copies them here.

shutil.rmtree(HERE / "notebooks", ignore_errors=True)
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", ignore=shutil.ignore_patterns(".*"))

# -- General -----------------------------------------------------------------------------------------------------------

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
default_role = "literal"
pygments_style = "default"

# Links into other projects need the network, so only the published build makes them.
if os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }

# -- API pages ---------------------------------------------------------------------------------------------------------

autosummary_generate = True
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_include_init_with_doc = False
napoleon_use_param = True
napoleon_use_rtype = True
always_use_bars_union = True
typehints_defaults = "braces"
# Names that are imported for type checking only cannot always be resolved; the hint is then shown as written.
suppress_warnings = ["sphinx_autodoc_typehints.forward_reference", "sphinx_autodoc_typehints.guarded_import"]


def parse_returns_section(self: NumpyDocstring, section: str) -> list[str]:
    """Keep *Returns* as written: prose, and a definition list of the fields that are set. Types come from the hints."""
    lines = self._strip_empty(self._consume_to_next_section())
    if lines[0].strip() == ":":  # a marker that sphinx_autodoc_typehints adds
        lines = self._strip_empty(lines[1:])
    lines = self._dedent(lines)
    return [*self._format_block(":returns: ", lines), ""]


NumpyDocstring._parse_returns_section = parse_returns_section

# -- Markdown and notebooks --------------------------------------------------------------------------------------------

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True
nb_output_stderr = "remove"

# -- HTML --------------------------------------------------------------------------------------------------------------

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {
    "navigation_with_keys": False,
    "path_to_docs": "docs/",
    "repository_branch": "main",
    "repository_url": repository_url,
    "use_repository_button": True,
}
