"""The count of operations: against torch's own count of what the engine runs, and against sums by hand."""

import pytest
import torch

from mmlens.engine import PlainRuns, PrefixRuns, masked_runs
from mmlens.engine.image_segment import read_by_all_heads
from mmlens.metrics import as_metric
from mmlens.recipes.engine_work import (
    PromptParts,
    Work,
    batch_work,
    executed_work,
    forward_work,
    least_work,
)
from tests.benchmarks.counted import counted_flops
from tests.engine.build import random_masks, tiny_model, tiny_sample
from tests.tiny import N_IMAGE_TOKENS

LOGIT = as_metric("logit")
PARTS = PromptParts(n_system=3, n_image=N_IMAGE_TOKENS, n_suffix=6)


@pytest.mark.parametrize("n_kv", [4, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_the_engine_executes_what_is_counted(n_kv: int, batch_size: int) -> None:
    model = tiny_model(n_kv=n_kv)
    masks = random_masks(10)  # the last batch is padded
    masks[3] = True  # ablates nothing
    masks[5:, 0] = True  # some begin above the first layer
    runs = PrefixRuns(model, tiny_sample(model), metric=LOGIT, baseline="knockout", batch_size=batch_size)
    work = executed_work(model.cfg, PARTS, masks, batch_size)
    assert counted_flops(runs, masks) == pytest.approx(work.total, rel=1e-9)
    assert work.image > 0 and work.total == pytest.approx(work.linear + work.own + work.image)


def test_where_all_heads_read_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_runs, "read_by_open_heads", read_by_all_heads)  # as on a GPU
    model, masks = tiny_model(), random_masks(8)
    runs = PrefixRuns(model, tiny_sample(model), metric=LOGIT, baseline="knockout", batch_size=8)
    work = executed_work(model.cfg, PARTS, masks, 8, on_cpu=False)
    assert counted_flops(runs, masks) == pytest.approx(work.total, rel=1e-9)
    assert work.image > executed_work(model.cfg, PARTS, masks, 8).image


def test_a_whole_forward() -> None:
    """The plain path with explicit attention and the last position's logits."""
    model = tiny_model()
    runs = PlainRuns(
        model, model.encode_images(tiny_sample(model)), metric=LOGIT, baseline="knockout", batch_size=1
    )
    work = forward_work(model.cfg, PARTS, all_logits=False).total
    assert counted_flops(runs, random_masks(2)) == pytest.approx(work, rel=1e-9)


def test_one_mask_by_hand() -> None:
    cfg, parts = tiny_model().cfg, PromptParts(n_system=1, n_image=10, n_suffix=2)
    d, m = cfg.d_model, cfg.d_mlp
    middle = 2 * 2 * d * 3 * d + 4 * 2 * d * (10 + 3) + 2 * (2 * d * d + 6 * d * m)
    last = 2 * d * d + 2 * 2 * d * 2 * d + 4 * d * (10 + 3) + 2 * d * d + 6 * d * m
    one = batch_work(cfg, parts, n_masks=1)
    assert one.total == 2 * middle + last + 2 * d
    causal = 4 * d * 1  # the first suffix position does not read the second
    assert least_work(cfg, parts).total == one.total - 2 * causal


def test_masks_share_their_first_layer() -> None:
    cfg, masks = tiny_model().cfg, random_masks(64)
    masks[:, 0, 0] = False
    alone, together = (executed_work(cfg, PARTS, masks, size).total for size in (1, 64))
    assert together < alone < least_work(cfg, PARTS).total * 1.1
    assert executed_work(cfg, PARTS, torch.ones_like(masks), 64) == Work(linear=2.0 * cfg.d_model)
