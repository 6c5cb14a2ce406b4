import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mmlens.datasets.scenes import SPLITS, digits
from mmlens.errors import ConfigError


def inks(split, size=16):
    return np.stack([digits.ink(sample, size) for sample in digits.samples(split)])


def test_the_splits_share_out_all_handwriting():
    shares = [digits.samples(split) for split in SPLITS]
    assert sorted(sample for share in shares for sample in share) == list(range(digits.N_SAMPLES))
    assert len(load_digits().target) == digits.N_SAMPLES
    for share, wanted in zip(shares, (0.70, 0.15, 0.15), strict=True):
        assert list(share) == sorted(share)
        assert len(share) / digits.N_SAMPLES == pytest.approx(wanted, abs=0.02)
        assert {digits.value(sample) for sample in share} == set(range(10))


def test_values_are_those_of_the_source():
    assert [digits.value(sample) for sample in range(digits.N_SAMPLES)] == load_digits().target.tolist()


@pytest.mark.parametrize("size", [15, 16, 24, 35])
def test_ink_is_the_sample_enlarged_and_cut(size):
    images = torch.from_numpy(load_digits().images)[:, None] / 16
    full = torch.nn.functional.interpolate(images, (size, size), mode="bilinear", align_corners=False)[:, 0]
    for sample in range(0, digits.N_SAMPLES, 12):
        clear = (full[sample] - 0.45).abs() > 1e-9
        assert np.array_equal(digits.ink(sample, size)[clear], (full[sample] >= 0.45)[clear])
        assert clear.float().mean() > 0.98


@pytest.mark.parametrize("split", SPLITS)
def test_every_digit_is_tall_and_neither_faint_nor_a_blot(split):
    masks = inks(split)
    assert masks.any(2).sum(1).min() >= 12, "every digit fills three quarters of the height"
    assert masks.mean((1, 2)).min() > 0.1 and masks.mean((1, 2)).max() < 0.6


def test_digits_can_be_read_from_their_ink_alone():
    known, asked = (inks(split).reshape(-1, 256).astype(float) for split in ("train", "heldout"))
    apart = asked @ (1 - known).T + (1 - asked) @ known.T  # pixels that differ
    values = np.array([digits.value(sample) for sample in digits.samples("train")])
    truth = [digits.value(sample) for sample in digits.samples("heldout")]
    assert (values[apart.argmin(1)] == truth).mean() > 0.93


def test_shared_ink_cannot_be_written():
    assert digits.ink(3, 15) is digits.ink(3, 15)
    with pytest.raises(ValueError, match="read-only"):
        digits.ink(3, 15)[0, 0] = True


@pytest.mark.parametrize("sample", [-1, 1797])
def test_samples_that_there_are_not_are_refused(sample):
    with pytest.raises(ConfigError, match=f"digit sample {sample} is unknown; .* 0 to 1796"):
        digits.check(sample)
    digits.check(0)
    digits.check(1796)
