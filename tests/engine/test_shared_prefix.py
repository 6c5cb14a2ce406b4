import math
from typing import Any

import pytest
import torch

from mmlens.engine import image_segment, shared_prefix
from mmlens.engine.image_segment import read_by_all_heads, read_by_open_heads
from mmlens.engine.kernels import attend
from mmlens.engine.shared_prefix import LayerPrefix, Replacement, shared_prefix_attention
from mmlens.engine.sight import Sight, sight
from tests.engine.build import rng

D_HEAD, SCALE = 8, 0.3


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=dtype)


def layer_prefix(n_kv: int, n_system: int, n_image: int = 5, sight: Sight | None = None) -> LayerPrefix:
    return LayerPrefix(
        sight=sight,
        k_system=drawn(n_kv, n_system, D_HEAD, seed=1),
        v_system=drawn(n_kv, n_system, D_HEAD, seed=2),
        k_image=drawn(n_kv, n_image, D_HEAD, seed=3),
        v_image=drawn(n_kv, n_image, D_HEAD, seed=4),
    )


def tensors(prefix: LayerPrefix) -> dict[str, Any]:
    return {name: value for name, value in vars(prefix).items() if name != "sight"}


def seen_by(query: int, prefix: LayerPrefix, n_suffix: int) -> list[torch.Tensor]:
    """Numbers of the system, image and suffix keys that a suffix query reads."""
    if prefix.sight is None:
        sizes = prefix.k_system.shape[1], prefix.k_image.shape[1], query + 1
        return [torch.arange(size) for size in sizes]
    return [
        getattr(prefix.sight, segment)[query].nonzero()[:, 0] for segment in ("system", "image", "suffix")
    ]


def naive(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    prefix: LayerPrefix,
    keep: torch.Tensor,
    replacement: Replacement | None,
) -> torch.Tensor:
    """One mask, query and head at a time, over a list of keys."""
    n_masks, (_, n_query, n_heads, _), n_suffix = len(keep), q.shape, k.shape[1]
    group, z = n_heads // k.shape[2], torch.zeros(n_masks, n_query, n_heads, D_HEAD, dtype=q.dtype)
    for m in range(n_masks):
        row = min(m, q.shape[0] - 1)
        for i in range(n_query):
            for h in range(n_heads):
                kv, last = h // group, n_suffix - n_query + i
                system, image, own = seen_by(last, prefix, n_suffix)
                keys = [*prefix.k_system[kv, system], *k[row, own, kv]]
                values = [*prefix.v_system[kv, system], *v[row, own, kv]]
                n_image = len(image)
                if keep[m, h]:
                    keys += [*prefix.k_image[kv, image]]
                    values += [*prefix.v_image[kv, image]]
                elif replacement is not None:
                    keys += [replacement.k[kv]] * n_image
                    values += [replacement.v[kv]] * n_image
                weights = torch.softmax(torch.stack(keys) @ q[row, i, h] * SCALE, dim=0)
                z[m, i, h] = weights @ torch.stack(values)
    return z


@pytest.mark.parametrize("n_system", [0, 1, 4])
@pytest.mark.parametrize("n_kv", [4, 2, 1])
@pytest.mark.parametrize("replaced", [False, True])
def test_equals_attention_written_out(n_system: int, n_kv: int, replaced: bool) -> None:
    prefix = layer_prefix(n_kv, n_system)
    replacement = (
        Replacement(k=drawn(n_kv, D_HEAD, seed=5), v=drawn(n_kv, D_HEAD, seed=6)) if replaced else None
    )
    q, k, v = (drawn(6, 3, n, D_HEAD, seed=7 + n) for n in (4, n_kv, n_kv))
    keep = torch.rand(6, 4, generator=rng(3)) < 0.5
    assert 0 < int(keep.sum()) < keep.numel()
    given = {"prefix": prefix, "keep": keep, "replacement": replacement}
    for n_query in (3, 1):  # the whole suffix, and the last position alone
        z = shared_prefix_attention(q[:, -n_query:], k, v, scale=SCALE, **given)
        torch.testing.assert_close(z, naive(q[:, -n_query:], k, v, **given), atol=1e-9, rtol=0)
    shared = shared_prefix_attention(q[:1], k[:1], v[:1], scale=SCALE, **given)  # one row for all masks
    torch.testing.assert_close(shared, naive(q[:1], k[:1], v[:1], **given), atol=1e-9, rtol=0)


@pytest.mark.parametrize("n_kv", [4, 2, 1])
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_closed_heads_may_be_left_out_of_the_image_segment(n_kv: int, replaced: bool, share: float) -> None:
    prefix = layer_prefix(n_kv, 1)
    replacement = (
        Replacement(k=drawn(n_kv, D_HEAD, seed=5), v=drawn(n_kv, D_HEAD, seed=6)) if replaced else None
    )
    q, k, v = (drawn(16, 3, n, D_HEAD, seed=7 + n) for n in (4, n_kv, n_kv))
    keep = torch.rand(16, 4, generator=rng(3)) < share
    given = {"prefix": prefix, "keep": keep, "replacement": replacement, "scale": SCALE}
    z = shared_prefix_attention(q, k, v, **given, read_image=read_by_open_heads)
    torch.testing.assert_close(z, shared_prefix_attention(q, k, v, **given), atol=1e-9, rtol=0)


@pytest.mark.parametrize("window", [2, 4, 5, 8, 9, 11, 12])
@pytest.mark.parametrize("replaced", [False, True])
def test_equals_attention_written_out_through_a_window(window: int, replaced: bool) -> None:
    """Columns: 2 system, 4 image, 2 between, 1 image, 3 suffix; from windows that hide the image to whole ones."""
    is_image = torch.tensor([False] * 2 + [True] * 4 + [False] * 2 + [True])
    seen = sight(window, start=9, is_image=is_image, n_pos=12)
    assert (seen is None) == (window == 12)
    prefix = layer_prefix(2, 4, sight=seen)
    replacement = Replacement(k=drawn(2, D_HEAD, seed=5), v=drawn(2, D_HEAD, seed=6)) if replaced else None
    q, k, v = (drawn(6, 3, n, D_HEAD, seed=7 + n) for n in (4, 2, 2))
    keep = torch.rand(6, 4, generator=rng(3)) < 0.5
    given = {"prefix": prefix, "keep": keep, "replacement": replacement}
    for n_query in (3, 1):
        z = shared_prefix_attention(q[:, -n_query:], k, v, scale=SCALE, **given)
        torch.testing.assert_close(z, naive(q[:, -n_query:], k, v, **given), atol=1e-9, rtol=0)


def test_one_head_by_hand() -> None:
    """One query at score 0 everywhere: every key has the same weight, so z is a mean of values."""
    prefix = LayerPrefix(
        k_system=torch.zeros(1, 1, 2),
        v_system=torch.tensor([[[8.0, 0.0]]]),
        k_image=torch.zeros(1, 2, 2),
        v_image=torch.tensor([[[0.0, 4.0], [0.0, 8.0]]]),
    )
    q, k, v = torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), torch.tensor([[[[4.0, 0.0]]]])
    keep, expected = torch.tensor([[True], [False]]), torch.tensor([[3.0, 3.0], [6.0, 0.0]])
    z = shared_prefix_attention(q, k, v, prefix=prefix, keep=keep, replacement=None, scale=1.0)
    torch.testing.assert_close(z[:, 0, 0], expected)  # (8+4)/4, (4+8)/4 · without the image (8+4)/2
    mean = Replacement(k=torch.tensor([[math.log(2.0), 0.0]]), v=torch.tensor([[0.0, 6.0]]))
    z = shared_prefix_attention(q, k, v, prefix=prefix, keep=keep, replacement=mean, scale=1.0)
    # two image keys of score log 2: weights 1, 1, 2, 2 of 6
    torch.testing.assert_close(z[:, 0, 0], torch.tensor([[3.0, 3.0], [2.0, 4.0]]))


def test_no_mask_gets_its_own_copy_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, int]] = []  # rows, queries and keys of every kernel call

    def spy(q: torch.Tensor, k: torch.Tensor, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((k.shape[0], q.shape[2], k.shape[2]))
        return attend(q, k, *rest)

    for module in (shared_prefix, image_segment):
        monkeypatch.setattr(module, "attend", spy)
    q, k, v = (drawn(6, 3, n, D_HEAD, seed=n) for n in (4, 2, 2))
    keep = torch.rand(6, 4, generator=rng()) < 0.5
    prefix, most = layer_prefix(2, 1, n_image=50), int(keep.unflatten(1, (2, 2)).sum((0, 2)).max())
    for read_image, n_readers in ((read_by_all_heads, 6 * 2), (read_by_open_heads, most)):
        seen.clear()
        given = {"prefix": prefix, "keep": keep, "replacement": None, "scale": SCALE}
        shared_prefix_attention(q, k, v, **given, read_image=read_image)
        assert sorted(seen) == [(1, n_readers * 3, 50), (6, 3 * 2, 1 + 3)]


def test_large_scores_do_not_overflow() -> None:
    prefix = layer_prefix(2, 1)
    q, k, v = drawn(2, 3, 2, D_HEAD), drawn(2, 3, 2, D_HEAD, seed=8), drawn(2, 3, 2, D_HEAD, seed=9)
    keep = torch.tensor([[True, False], [False, True]])
    z = shared_prefix_attention(1e4 * q, k, v, prefix=prefix, keep=keep, replacement=None, scale=SCALE)
    assert bool(torch.isfinite(z).all())


def test_half_precision_keeps_its_dtype_and_merges_in_float32() -> None:
    prefix = layer_prefix(2, 2)
    halves = LayerPrefix(**{name: value.bfloat16() for name, value in tensors(prefix).items()})
    q, k, v = (drawn(4, 3, n, D_HEAD, seed=n).bfloat16() for n in (4, 2, 2))
    keep = torch.rand(4, 4, generator=rng()) < 0.5
    z = shared_prefix_attention(q, k, v, prefix=halves, keep=keep, replacement=None, scale=SCALE)
    assert z.dtype == torch.bfloat16
    widened = LayerPrefix(**{name: value.double() for name, value in tensors(halves).items()})
    exact = naive(q.double(), k.double(), v.double(), widened, keep, None)
    torch.testing.assert_close(z.double(), exact, atol=0.02, rtol=0.02)
