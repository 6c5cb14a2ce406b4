"""One map per result, whatever kind it is."""

import numpy as np

from mmlens.result import HeadResult, mean_map
from tests.result.examples import attribution, head_score, pooled_attribution


def test_every_kind_of_head_result_gives_one_map() -> None:
    for result, expected in (
        (attribution(), attribution().theta.values.mean(0)),
        (head_score(), head_score().score.values.mean(0)),
        (pooled_attribution(), pooled_attribution().theta.values),
    ):
        assert isinstance(result, HeadResult)
        found = mean_map(result)
        assert found.dims == ("layer", "head") and found.attrs["unit"]
        np.testing.assert_allclose(found, expected)
