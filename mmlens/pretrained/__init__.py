"""The embedded models: small, honest, shipped inside the package, and the script that trains them.

``names`` lists them and ``path`` gives the folder of one, an ordinary Hugging Face folder.
"""

from pathlib import Path

from mmlens.errors import ConfigError
from mmlens.pretrained.checksums import verify

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped models, one folder each."""

__all__ = ["WEIGHTS", "names", "path"]


def names() -> tuple[str, ...]:
    """Names of the embedded models, in alphabetical order."""
    return tuple(sorted(folder.name for folder in WEIGHTS.iterdir() if (folder / "config.json").is_file()))


def path(name: str) -> Path:
    """The folder of an embedded model, after checking every file in it.

    Args:
        name: One of :func:`names`.

    Returns:
        A folder that ``from_pretrained`` of transformers or mmlens reads.

    Raises:
        ConfigError: If there is no embedded model of that name.
        CheckpointError: If a file is missing or is not the one that was shipped.
    """
    if name not in names():
        raise ConfigError(f"no embedded model is called {name!r}; there are: {', '.join(names()) or 'none'}")
    verify(WEIGHTS / name)
    return WEIGHTS / name
