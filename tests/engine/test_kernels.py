import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmlens.engine import kernels
from mmlens.engine.kernels import attend, attend_explicitly
from tests.engine.build import rng

D_HEAD, SCALE = 8, 0.3


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=dtype)


@pytest.mark.parametrize("n_key", [1, 5, 33])
def test_both_kernels_agree(n_key: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = drawn(2, 3, 7, D_HEAD), drawn(2, 3, n_key, D_HEAD, seed=1), drawn(2, 3, n_key, D_HEAD, seed=2)
    bias = torch.zeros(7, n_key, dtype=q.dtype).masked_fill(
        torch.arange(n_key) > torch.arange(7)[:, None], -torch.inf
    )
    for given in (None, bias):
        expected = attend_explicitly(q, k, v, SCALE, given)
        torch.testing.assert_close(attend(q, k, v, SCALE, given), expected, atol=1e-6, rtol=0)
        monkeypatch.setattr(kernels, "MAX_SCORES", 13)  # a query or two at a time
        torch.testing.assert_close(attend_explicitly(q, k, v, SCALE, given), expected)
        monkeypatch.undo()


def test_an_empty_segment_has_no_weight() -> None:
    q, nothing = drawn(1, 2, 3, D_HEAD), drawn(1, 2, 0, D_HEAD)
    out, lse = attend(q, nothing, nothing, SCALE)
    assert torch.equal(out, torch.zeros_like(out))
    assert bool((lse == -torch.inf).all())


def test_a_query_that_sees_nothing_stays_finite() -> None:
    q, k, v = drawn(2, 3, 4, D_HEAD), drawn(2, 3, 5, D_HEAD, seed=1), drawn(2, 3, 5, D_HEAD, seed=2)
    lowest = torch.finfo(q.dtype).min
    bias = torch.zeros(4, 5, dtype=q.dtype)
    bias[1] = lowest
    for kernel in (attend, attend_explicitly):
        out, lse = kernel(q, k, v, SCALE, bias)
        assert bool(torch.isfinite(out).all())
        assert float(lse[:, :, 1].max()) < lowest / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_flash_kernel_of_cuda_takes_what_it_is_given(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes and dtypes only: no GPU is needed for tensors without contents."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    with FakeTensorMode():
        q = torch.empty(1, 2, 48, 64, device="cuda", dtype=dtype)
        k = torch.empty(1, 2, 576, 64, device="cuda", dtype=dtype)
        assert kernels.flash_fits(q)
        out, lse = attend(q, k, k, SCALE)
        assert (out.shape, out.dtype) == (q.shape, dtype)
        assert (lse.shape, lse.dtype) == (q.shape[:3], torch.float32)
        assert not kernels.flash_fits(q.float())
        assert not kernels.flash_fits(torch.empty(1, 2, 48, 20, device="cuda", dtype=dtype))
