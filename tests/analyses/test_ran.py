"""Analyses under head masks when memory runs out on the way."""

from typing import Any

import numpy as np
import pytest
import torch

from mmlens.analyses import (
    circuit,
    faithfulness,
    head_attribution,
    head_interactions,
    pooled_head_attribution,
    single_head_ablation,
)
from mmlens.engine import PrefixRuns
from mmlens.errors import MemoryShortage
from tests.engine.build import prompt, tiny_model

OPTIONS: dict[str, Any] = {"n_masks": 64, "n_heldout": 16, "batch_size": 32, "progress": False}


def scarce(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """No more masks than this fit; the numbers that were tried."""
    tried, original = [], PrefixRuns.run_batch

    def run_batch(self: PrefixRuns, masks: torch.Tensor) -> torch.Tensor:
        tried.append(len(masks))
        if len(masks) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, masks)

    monkeypatch.setattr(PrefixRuns, "run_batch", run_batch)
    return tried


def test_it_goes_on_with_half_the_batch_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_model(), [prompt(0), prompt(1)]
    whole = head_attribution(model, prompts, **OPTIONS)
    tried = scarce(monkeypatch, 10)
    found = head_attribution(model, prompts, **OPTIONS)
    np.testing.assert_allclose(found.theta.values, whole.theta.values, atol=1e-5)
    assert (found.info.batch_size, found.info.settings["batches_halved"]) == (8, 2)
    assert (whole.info.batch_size, whole.info.settings["batches_halved"]) == (32, 0)
    assert [size for size in tried if size > 10] == [
        32,
        16,
    ]  # once; the second prompt begins with what fitted


def test_memory_for_not_even_one_mask_names_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    scarce(monkeypatch, 0)
    with pytest.raises(MemoryShortage, match=r"sample 0.*one head mask at a time"):
        head_attribution(tiny_model(), [prompt(0)], **OPTIONS)


@pytest.mark.parametrize("name", ["single", "faithfulness", "interactions", "pooled", "circuit"])
def test_every_analysis_under_head_masks_goes_on_and_says_so(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = tiny_model(), [prompt(0), prompt(1)]
    shape = model.cfg.n_layers, model.cfg.n_heads
    common: dict[str, Any] = {"batch_size": 32, "progress": False, "baseline": "knockout"}
    scores = np.arange(12.0).reshape(shape)
    run: dict[str, Any] = {
        "single": lambda: single_head_ablation(model, prompts, **common),
        "faithfulness": lambda: faithfulness(
            model, prompts, {"given": scores}, n_random=2, n_boot=20, **common
        ),
        "interactions": lambda: head_interactions(model, prompts, [(0, 1), (1, 2)], n_masks=64, **common),
        "pooled": lambda: pooled_head_attribution(model, prompts, n_masks=32, n_heldout=16, **common),
        "circuit": lambda: circuit(model, prompts, {"given": scores > 8}, n_draws=8, n_boot=20, **common),
    }
    scarce(monkeypatch, 5)
    found = run[name]()
    assert found.info.batch_size == 4
    assert found.info.settings["batches_halved"] >= 1
