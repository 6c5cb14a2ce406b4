"""Curves: methods, headline and growing sizes."""

import numpy as np
import pytest

from mmlens.errors import ResultError
from mmlens.result import FaithfulnessResult
from tests.result.examples import METHODS, faithfulness


def test_methods_keep_their_order() -> None:
    assert faithfulness().methods == METHODS


@pytest.mark.parametrize("sizes", [[1] * 11, list(range(11))[::-1], list(range(-1, 10))])
def test_sizes_must_grow(sizes: list[int]) -> None:
    result = faithfulness()
    with pytest.raises(ResultError, match=r"must grow|not unique"):
        FaithfulnessResult(data=result.data.assign_coords(size=sizes), info=result.info)


def test_the_headline_says_when_a_threshold_is_never_reached() -> None:
    result = faithfulness()
    data = result.data.assign(k80=result.data["k80"].copy(data=[np.nan, 1.0, 1.0]))
    assert "never reaches 0.8" in FaithfulnessResult(data=data, info=result.info).headline()
    assert "12 heads reach 0.8" in result.headline()
