"""The prefix engine on every family: exact where it runs, refused by name where it would not be."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from mmlens.engine import PlainRuns, PrefixRuns
from mmlens.errors import EngineNotExact
from mmlens.interventions import HEAD_BASELINES
from mmlens.metrics import as_metric
from mmlens.model import HookedVLM
from tests.engine.build import random_masks, with_answers
from tests.zoo import VARIANTS

REFUSED = {"paligemma": "prefix-LM", "paligemma2": "prefix-LM"}
"""Variant → what its refusal names."""
FAMILIES = [name for name, v in VARIANTS.items() if not (v.reference_only or v.text_only)]


def sample(name: str, n_images: int = 1) -> tuple[Any, Any]:
    model = HookedVLM.from_hf(VARIANTS[name].model(seed=1))
    batch = VARIANTS[name].batch(n_images=n_images, n_after=(6, 4))
    return model, with_answers(model.prepare(batch)).select([1])


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in REFUSED])
@pytest.mark.parametrize("n_images", [1, 2])
def test_equals_the_plain_path(name: str, n_images: int) -> None:
    model, inputs = sample(name, n_images)
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    ones = torch.ones(1, *shape, dtype=torch.bool)
    masks = torch.cat([random_masks(6, *shape), ones, ~ones])
    for baseline in HEAD_BASELINES:
        options = {"metric": as_metric("logit"), "baseline": baseline}
        plain = PlainRuns(model, inputs, **options)(masks)
        assert float(plain.std()) > 1e-3  # head masks matter here at all
        difference = PrefixRuns(model, inputs, **options)(masks) - plain
        assert float(difference.abs().max()) <= 1e-5 * max(1.0, float(plain.abs().max()))


@pytest.mark.parametrize("name", list(REFUSED))
def test_is_refused_by_name(name: str) -> None:
    model, inputs = sample(name)
    with pytest.raises(EngineNotExact, match=REFUSED[name]):
        PrefixRuns(model, inputs, metric=as_metric("logit"))
    masks = random_masks(2, model.cfg.n_layers, model.cfg.n_heads)
    assert torch.isfinite(PlainRuns(model, inputs, metric=as_metric("logit"))(masks)).all()


WINDOWS = (3, 8, 12, 16, 500)
"""From a window that hides the whole image from the last token to one that hides nothing."""


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", ["llava-mistral", "gemma3"])
def test_equals_the_plain_path_through_windows(name: str, window: int) -> None:
    variant = VARIANTS[name]
    config = variant.config()
    config.get_text_config().sliding_window = window
    model = HookedVLM.from_hf(replace(variant, config=lambda: config).model(seed=1))
    assert window in model.cfg.windows
    inputs = with_answers(model.prepare(variant.batch(n_images=2, n_after=(6, 4)))).select([1])
    masks = random_masks(4, model.cfg.n_layers, model.cfg.n_heads)
    for baseline in HEAD_BASELINES:
        options = {"metric": as_metric("logit"), "baseline": baseline}
        plain = PlainRuns(model, inputs, **options)(masks)
        difference = PrefixRuns(model, inputs, **options)(masks) - plain
        assert float(difference.abs().max()) <= 1e-5
