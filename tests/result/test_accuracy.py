"""Accuracy: shares, not percent; a headline with the majority rate."""

import pytest

from mmlens.errors import ResultError
from mmlens.result import AccuracyResult
from tests.result.examples import accuracy


@pytest.mark.parametrize("name", ["accuracy", "majority"])
def test_percent_are_refused(name: str) -> None:
    result = accuracy()
    with pytest.raises(ResultError, match="not percent"):
        AccuracyResult(data=result.data.assign({name: result.data[name] * 100}), info=result.info)


def test_the_headline_averages_over_families() -> None:
    assert accuracy().headline() == "clean 0.90, blocked 0.24, majority 0.24"
