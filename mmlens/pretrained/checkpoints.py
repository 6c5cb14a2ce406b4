"""Checkpoints of a training run: everything that decides the rest of it, written in one atomic step."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from mmlens.errors import CheckpointError, ConfigError

CHECKPOINT, CURVE = "checkpoint.pt", "curve.jsonl"


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write the state beside the old file, then swap the two."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{CHECKPOINT}.partial"
    torch.save(state, partial)
    os.replace(partial, folder / CHECKPOINT)


def read_checkpoint(folder: Path, *, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The state of the run in this folder, or None if it has none yet.

    Args:
        folder: The run's folder.
        settings: What must not have changed since, by name.

    Raises:
        CheckpointError: If the file cannot be read.
        ConfigError: If a setting differs from the one the run began with.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({error}); delete it to start over") from error
    changed = {k: (state["settings"].get(k), v) for k, v in settings.items() if state["settings"].get(k) != v}
    if changed:
        told = ", ".join(f"{name}: {old} before, {new} now" for name, (old, new) in changed.items())
        raise ConfigError(f"the run in {folder} was begun with other settings ({told}); use another --out")
    return state


def append_curve(folder: Path, point: dict[str, Any]) -> None:
    """Add one point to the run's learning curve."""
    with (folder / CURVE).open("a") as file:
        file.write(json.dumps(point) + "\n")


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """The run's learning curve, one dictionary a point."""
    path = folder / CURVE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def trim_curve(folder: Path, step: int) -> None:
    """Drop the points after this step: a resumed run writes them again."""
    kept = [point for point in read_curve(folder) if point["step"] <= step]
    partial = folder / f"{CURVE}.partial"
    partial.write_text("".join(json.dumps(point) + "\n" for point in kept))
    os.replace(partial, folder / CURVE)
