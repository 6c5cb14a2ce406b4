"""Checksums of a shipped folder: written once when a model is finished, checked each time it is opened."""

import hashlib
import json
from pathlib import Path

from mmlens.errors import CheckpointError

SUMS = "SHA256SUMS.json"


def seal(folder: Path) -> None:
    """Write the SHA-256 of every file of the folder into it."""
    sums = {file.name: _sha256(file) for file in sorted(folder.iterdir()) if file.name != SUMS}
    (folder / SUMS).write_text(json.dumps(sums, indent=2) + "\n")


def verify(folder: Path) -> None:
    """Check every file that was sealed.

    Raises:
        CheckpointError: If the list of checksums cannot be read, or a file is missing or differs.
    """
    try:
        sums = json.loads((folder / SUMS).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / SUMS} cannot be read ({error}); install mmlens again") from error
    for name, expected in sums.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; it was shipped with the model, install mmlens again")
        found = _sha256(file)
        if found != expected:
            raise CheckpointError(
                f"{file} is not the file that was shipped: its SHA-256 is {found}, expected {expected}; "
                "install mmlens again, or load an edited copy of the folder by its path"
            )


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
