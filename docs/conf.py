"""Sphinx configuration. ``make docs`` builds with ``-W``: a broken reference or failing cell is an error."""

import os

# Before any cell, or autodoc, imports the libraries that read them.
os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled", TOKENIZERS_PARALLELISM="false")
os.environ["PLOTLY_RENDERER"] = "plotly_mimetype+notebook"  # figures work offline
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm would rather have widgets

import mmlens
from mmlens.axes import AXES

project = "mmlens"
author = "mmlens developers"
project_copyright = "mmlens developers"
version = release = mmlens.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"mmlens {release}"

# Markdown
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "substitution"]
myst_heading_anchors = 3
axis_rows = [f"| `{name}` | {what} |" for name, what in AXES.items()]
myst_substitutions = {"axes": "\n".join(["| axis | counts |", "|---|---|", *axis_rows])}

# Pages with code cells run at build time; the tutorials come in executed (make notebooks).
nb_execution_mode = "force"
nb_execution_excludepatterns = ["tutorials/*"]
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
# Figures carry a plotly mimetype beside their HTML; Sphinx shows the HTML and need not warn of the other.
suppress_warnings = ["mystnb.unknown_mime_type"]

# API
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Source"]
