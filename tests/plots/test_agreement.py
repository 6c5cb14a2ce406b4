"""One point per head; the rank correlation is Spearman's."""

import numpy as np
import pytest
from scipy import stats

from mmlens.errors import ResultError
from mmlens.plots import agreement
from mmlens.result import HeadScoreResult
from tests.result.examples import attribution, head_score


def test_points_and_rank_correlation() -> None:
    result, score = attribution(), head_score()
    figure = agreement(result, score)
    theta, other = result.theta.values.mean(axis=0).ravel(), score.score.values.mean(axis=0).ravel()
    assert np.allclose(figure.data[0].x, other, rtol=1e-3) and np.allclose(figure.data[0].y, theta, rtol=1e-3)
    rank = stats.spearmanr(theta, other).statistic
    assert f"correlation {rank:.2f}".replace("-", "−") in figure.layout.meta["subtitle"]
    assert figure.data[0].customdata[5].tolist() == [1, 1]


def test_other_heads_are_refused() -> None:
    score = head_score()
    smaller = HeadScoreResult(data=score.data.isel(head=[0, 1]), info=score.info)
    with pytest.raises(ResultError, match="heads differ"):
        agreement(attribution(), smaller)
