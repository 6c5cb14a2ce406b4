"""Small sweeps: a tiny model, prompts about random images, and analyses that fail on purpose."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.engine.build import prompt, tiny_model

PATIENCE = "MMLENS_TEST_SECONDS"

QUICK = {"n_masks": 32, "n_heldout": 8, "self_check": False}
"""Options of a head attribution that takes a fraction of a second."""


def prompts(n: int) -> list[Any]:
    return [prompt(i) for i in range(n)]


def shards(folder: Path) -> dict[str, bytes]:
    """Every unit's file, by name."""
    return {file.name: file.read_bytes() for file in sorted((folder / "units").glob("*.mmlens"))}


def poisoned(model: Any, given: list[Any], *, bad: str, **options: Any) -> Any:
    """Single-head ablation that one question breaks."""
    from mmlens.analyses import single_head_ablation

    if given[0].question == bad:
        raise ZeroDivisionError(f"sample 0 asked {bad!r}")
    return single_head_ablation(model, given, progress=False, **options)


def deadly(model: Any, given: list[Any], *, bad: str, **options: Any) -> Any:
    """Single-head ablation whose process dies of one question."""
    from mmlens.analyses import single_head_ablation

    if given[0].question == bad:
        os._exit(1)
    return single_head_ablation(model, given, progress=False, **options)


def dies_once(model: Any, given: list[Any], *, marker: str, **options: Any) -> Any:
    """Single-head ablation whose process is killed the first time that any unit runs."""
    from mmlens.analyses import single_head_ablation

    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return single_head_ablation(model, given, progress=False, **options)


def slow(model: Any, given: list[Any], *, seconds: float, **options: Any) -> Any:
    """Single-head ablation that takes its time."""
    from mmlens.analyses import single_head_ablation

    time.sleep(seconds)
    return single_head_ablation(model, given, progress=False, **options)


def patient(model: Any, given: list[Any], **options: Any) -> Any:
    """Single-head ablation that waits as long as the surroundings say, which enter no address."""
    return slow(model, given, seconds=float(os.environ.get(PATIENCE, "0")), **options)


def no_result(model: Any, given: list[Any]) -> str:
    return "nothing"


def model() -> Any:
    return tiny_model()
