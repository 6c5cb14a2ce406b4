from typing import Any

import pytest
import torch

from mmlens.engine import gated_attention as module
from mmlens.engine.gated_attention import gated_attention
from mmlens.engine.shared_prefix import LayerPrefix, Replacement, shared_prefix_attention
from mmlens.engine.sight import sight
from tests.engine.build import rng
from tests.engine.test_shared_prefix import D_HEAD, SCALE, drawn, layer_prefix, naive

WINDOWS = {"no window": None, "image cut": 6, "image out of sight of some": 4}


def subject(window: int | None, replaced: bool, n_kv: int = 2) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Three points, queries of three positions, four heads; two tokens before five of an image."""
    is_image = torch.tensor([False] * 2 + [True] * 5)
    prefix = layer_prefix(n_kv, 2, sight=sight(window, 7, is_image, 10))
    assert (prefix.sight is None) == (window is None)
    bar = Replacement(k=drawn(n_kv, D_HEAD, seed=5), v=drawn(n_kv, D_HEAD, seed=6)) if replaced else None
    q, k, v = (drawn(3, 3, n, D_HEAD, seed=7 + n) for n in (4, n_kv, n_kv))
    gates = torch.rand(3, 4, generator=rng(1), dtype=torch.float64)
    return [q, k, v, gates], {"prefix": prefix, "replacement": bar, "scale": SCALE}


@pytest.mark.parametrize("n_kv", [4, 2, 1])
@pytest.mark.parametrize("window", WINDOWS.values(), ids=list(WINDOWS))
@pytest.mark.parametrize("replaced", [False, True])
def test_mixes_attention_written_out(replaced: bool, window: int | None, n_kv: int) -> None:
    (q, k, v, gates), shared = subject(window, replaced, n_kv)
    every = torch.ones(3, 4, dtype=torch.bool)
    for n_query in (3, 1):  # the whole suffix, and the last position alone
        kept, closed = (
            naive(q[:, -n_query:], k, v, shared["prefix"], keep, shared["replacement"])
            for keep in (every, ~every)
        )
        gate = gates[:, None, :, None]
        z = gated_attention(q[:, -n_query:], k, v, gates, **shared)
        assert float((kept - closed).abs().max()) > 0.1
        torch.testing.assert_close(z, gate * kept + (1 - gate) * closed, atol=1e-9, rtol=0)


def test_points_may_share_one_row() -> None:
    (q, k, v, gates), shared = subject(None, replaced=True)
    q, k, v = q[:1], k[:1], v[:1]
    qs, ks, vs = (x.expand(3, -1, -1, -1) for x in (q, k, v))
    many = gated_attention(qs, ks, vs, gates, **shared)
    torch.testing.assert_close(gated_attention(q, k, v, gates, **shared), many)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", WINDOWS.values(), ids=list(WINDOWS))
@pytest.mark.parametrize("replaced", [False, True])
def test_ends_are_masks_and_caps_are_honoured(
    replaced: bool, window: int | None, softcap: float | None
) -> None:
    (q, k, v, _), shared = subject(window, replaced)
    keep = torch.rand(3, 4, generator=rng(3)) < 0.5
    mixed = gated_attention(q, k, v, keep.double(), softcap=softcap, **shared)
    masked = shared_prefix_attention(q, k, v, keep=keep, softcap=softcap, **shared)
    torch.testing.assert_close(mixed, masked, atol=1e-9, rtol=0)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("replaced", [False, True])
def test_gradients_by_everything_are_finite_differences(
    replaced: bool, window: int | None, softcap: float | None
) -> None:
    tensors, shared = subject(window, replaced)
    leaves = [x.requires_grad_(True) for x in tensors]
    assert torch.autograd.gradcheck(
        lambda *x: gated_attention(*x, softcap=softcap, **shared), leaves, fast_mode=True
    )


def watched(leaves: list[torch.Tensor], shared: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """The outputs, and the size of the largest tensor that is kept for the way back."""
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        z = gated_attention(*leaves, **shared)
    return z, max(saved)


def test_many_scores_are_computed_twice_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, shared = subject(6, replaced=True)
    leaves = [x.requires_grad_(True) for x in tensors]
    found, kept = [], []
    for limit in (module._KEPT_SCORES, 0):
        monkeypatch.setattr(module, "_KEPT_SCORES", limit)
        z, largest = watched(leaves, shared)
        found.append([z, *torch.autograd.grad(z.square().sum(), leaves)])
        kept.append(largest)
    for once, twice in zip(*found, strict=True):
        assert torch.equal(once, twice)
    n_scores = 4 * 3 * 3 * (2 + 5 + 3)
    assert kept[0] >= n_scores > 3 * 3 * 4 * D_HEAD >= kept[1]


def test_half_precision_mixes_in_float32() -> None:
    (q, k, v, gates), shared = subject(None, replaced=True)
    prefix = LayerPrefix(
        **{name: x.bfloat16() for name, x in vars(shared["prefix"]).items() if name != "sight"}
    )
    qs, ks, vs = (x.bfloat16() for x in (q, k, v))
    narrow = gated_attention(qs, ks, vs, gates.float(), **{**shared, "prefix": prefix})
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(
        narrow.double(), gated_attention(q, k, v, gates, **shared), atol=0.03, rtol=0.03
    )
