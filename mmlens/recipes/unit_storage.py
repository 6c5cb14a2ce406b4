"""Bytes of a sweep's unit: measured on the embedded model, and as a larger model would write it.

Head attribution stores coefficients and intervals (grow with the heads), a thumbnail (grows with its pixels), boxes and
weights of the image's cells, tokens and their roles; values on the held-out masks, metadata and the archive's own
entries do not grow.
"""

import json
import math
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmlens.analyses.design import block_size
from mmlens.config import ModelConfig
from mmlens.datasets import scenes
from mmlens.model import HookedVLM
from mmlens.result.drawing import MAX_SIDE
from mmlens.sweeps import sweep

EMBEDDED = "scenes"
_GROUPS = {"layer": "coefficients and intervals", "pixel_row": "thumbnail", "row": "cells", "pos": "tokens"}
"""Axis → what has it; an array belongs to the first of its axes that stands here."""
_REST = "everything else"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One array of a unit's file: its axes with their lengths, and its bytes, compressed."""

    dims: Mapping[str, int]
    n_bytes: float | int


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One unit's file.

    Attributes:
        members: its arrays.
        rest: bytes of everything else in it.
        line: bytes of its line in the manifest.
    """

    members: tuple[Member, ...]
    rest: float | int
    line: int

    @property
    def parts(self) -> dict[str, float]:
        """Bytes of the file by what they describe."""
        found = dict.fromkeys([*_GROUPS.values(), _REST], 0.0)
        for member in self.members:
            found[next((name for axis, name in _GROUPS.items() if axis in member.dims), _REST)] += (
                member.n_bytes
            )
        found[_REST] += self.rest
        return found

    @property
    def n_bytes(self) -> float:
        """Bytes of the file."""
        return sum(self.parts.values())


def measured_unit() -> Unit:
    """Runs one unit of head attribution on the embedded model, into a folder that is removed again."""
    model = HookedVLM.from_pretrained(EMBEDDED)
    prompts = scenes.prompts("attribution", 1, family="main")
    n_masks = block_size(model.cfg.n_layers * model.cfg.n_heads, "hadamard")
    with tempfile.TemporaryDirectory() as folder:
        sweep(model, prompts, "head_attribution", folder, {"n_masks": n_masks, "seed": 0}, progress=False)
        (file,) = (Path(folder) / "units").glob("*.mmlens")
        lines = (Path(folder) / "manifest.json").read_text(encoding="utf-8").splitlines()
        with zipfile.ZipFile(file) as archive:
            packed = {info.filename: info.compress_size for info in archive.infolist()}
            described = json.loads(archive.read("meta.json"))["variables"].values()
        members = tuple(
            Member(dims=dict(zip(one["dims"], one["shape"], strict=True)), n_bytes=packed[one["member"]])
            for one in described
        )
        rest = file.stat().st_size - sum(member.n_bytes for member in members)
        line = next(len(one) for one in lines if file.stem in one) + len(",\n")
    return Unit(members=members, rest=rest, line=line)


def enlarged(unit: Unit, cfg: ModelConfig, *, n_pos: int, grid: int) -> Unit:
    """The unit as a larger model would write it: arrays grow with their axes, as compressible as they were.

    Args:
        unit: as measured.
        cfg: the larger model.
        n_pos: tokens of its prompt.
        grid: cells along one side of its image.
    """
    sizes = {
        "layer": cfg.n_layers,
        "head": cfg.n_heads,
        "pos": n_pos,
        "row": grid,
        "col": grid,
        "pixel_row": MAX_SIDE,
        "pixel_col": MAX_SIDE,
    }
    members = tuple(
        Member(
            dims={axis: sizes.get(axis, n) for axis, n in member.dims.items()},
            n_bytes=member.n_bytes
            * math.prod(sizes.get(axis, n) / n for axis, n in member.dims.items() if n),
        )
        for member in unit.members
    )
    return Unit(members=members, rest=unit.rest, line=unit.line)
