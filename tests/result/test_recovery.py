"""Recovery results: errors only where they mean something, shares within [0, 1]."""

import pytest

from mmlens.errors import ResultError
from mmlens.result import RecoveryResult
from tests.result.examples import METHODS, recovery_result


def test_the_error_is_that_of_comparable_methods_only() -> None:
    result = recovery_result()
    assert result.error["method"].values.tolist() == METHODS[:1]
    assert result.error.values.tolist() == [0.1]


def test_no_comparable_method_has_no_error() -> None:
    result = recovery_result()
    data = result.data.drop_vars("error").assign(comparable=result.data["comparable"] * 0)
    with pytest.raises(ResultError, match=r"unit of the exact values \(logit\)"):
        _ = RecoveryResult(data=data, info=result.info).error


@pytest.mark.parametrize("flags", [[1, 1, 0], [0, 0, 0]])
def test_flag_and_error_must_agree(flags: list[int]) -> None:
    result = recovery_result()
    data = result.data.assign(comparable=result.data["comparable"].copy(data=flags))
    with pytest.raises(ResultError, match="if and only if"):
        RecoveryResult(data=data, info=result.info)


@pytest.mark.parametrize("name", ["auroc", "average_precision", "recovered_at_k"])
def test_percent_are_refused(name: str) -> None:
    result = recovery_result()
    with pytest.raises(ResultError, match=rf"{name} must lie in \[0, 1\]"):
        RecoveryResult(data=result.data.assign({name: result.data[name] * 100}), info=result.info)


def test_the_headline_is_about_the_first_method() -> None:
    text = recovery_result().headline()
    assert (
        text
        == "head attribution: AUROC 1.00, average precision 1.00, finds 100% of the 2 heads that colour uses"
    )
    assert recovery_result().methods == METHODS
