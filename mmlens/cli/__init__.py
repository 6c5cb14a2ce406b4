"""The command line: one file for each command, or for those that belong together.

Commands import what they need when they run, so that ``mmlens --help`` answers at once. They register in the order of
the imports below, which is that of the help.
"""

# isort: off
from mmlens.cli.app import app, main
from mmlens.cli import attribution, patching, visual_heads, lenses, flow, sweeps, models
# isort: on

__all__ = ["app", "attribution", "flow", "lenses", "main", "models", "patching", "sweeps", "visual_heads"]
