"""Text that others wrote stays text, numbers stay short, scales are centred at zero."""

import math

import numpy as np
import pytest

from mmlens.plots.theme import DIVERGING, as_text, number, overlay_scale, rounded, symmetric_limit, with_unit


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("<b>x</b>", "&lt;b&gt;x&lt;/b&gt;"),
        ("a & b", "a &amp; b"),
        (" two\n lines ", "two lines"),
        (3, "3"),
    ],
)
def test_markup_becomes_text(given: object, shown: str) -> None:
    assert as_text(given) == shown


def test_shortening_never_cuts_an_entity() -> None:
    assert as_text("<<<<<<", 3) == "&lt;&lt;…"


def test_rounding_keeps_significant_digits_of_every_size() -> None:
    values = np.array([123456.0, -0.000123456, 0.0, np.nan, np.inf])
    assert np.array_equal(rounded(values), [123500.0, -0.0001235, 0.0, np.nan, np.inf], equal_nan=True)


def test_numbers_have_a_real_minus_sign() -> None:
    assert number(-1.234) == "−1.23" and number(0.5, "+.1f") == "+0.5"


@pytest.mark.parametrize(
    ("name", "unit", "shown"),
    [
        ("attention weight", "1", "attention weight"),
        ("measured logit", "logit", "measured logit"),
        ("x", "s", "x (s)"),
    ],
)
def test_units_are_said_once(name: str, unit: str, shown: str) -> None:
    assert with_unit(name, unit) == shown


def test_limits_hold_every_finite_value() -> None:
    assert symmetric_limit(np.array([1.0, -3.0, np.nan])) == 3.0
    assert symmetric_limit(np.zeros(3)) == 1.0 and symmetric_limit(np.array([np.nan])) == 1.0


def lightness(colour: str) -> float:
    """CIE L* of a hex colour."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return 116 * math.cbrt(luminance) - 16


def test_the_diverging_scale_is_as_dark_at_both_ends() -> None:
    values = [lightness(colour) for _, colour in DIVERGING]
    assert values[2] > 95
    assert values[0] == pytest.approx(values[4], abs=6) and values[1] == pytest.approx(values[3], abs=6)


def test_zero_is_clear_over_an_image() -> None:
    scale = overlay_scale(0.8)
    assert scale[10][1].endswith(",0.000)") and scale[0][1].endswith(",0.800)")
