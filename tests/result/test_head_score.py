"""Scores of other methods: summary and headline."""

import numpy as np

from tests.result.examples import head_score


def test_the_summary_is_the_mean_over_samples() -> None:
    result = head_score()
    assert np.allclose(result.summary()["theta"].values, result.score.values.mean(axis=0))


def test_the_headline_names_the_strongest_head() -> None:
    result = head_score()
    layer, head = np.unravel_index(result.score.values.mean(axis=0).argmax(), (6, 4))
    assert f"L{layer}H{head}" in result.headline() and "attention weight" in result.headline()
