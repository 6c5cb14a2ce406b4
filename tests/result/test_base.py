"""Selecting, tables and text forms that all results share; loading and drawing need no torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from mmlens.errors import ResultError
from mmlens.result import HeadScoreResult, Result
from tests.result.examples import (
    accuracy,
    attribution,
    faithfulness,
    head_score,
    interactions,
    map_similarity,
    planted_truth,
    pooled_attribution,
    recovery_result,
)

EVERY_KIND = [
    attribution,
    head_score,
    faithfulness,
    accuracy,
    planted_truth,
    recovery_result,
    map_similarity,
    interactions,
    pooled_attribution,
]


def test_the_base_class_cannot_be_made() -> None:
    one = head_score()
    with pytest.raises(TypeError, match="abstract"):
        Result(data=one.data, info=one.info)  # type: ignore[abstract]


def test_fields_are_frozen() -> None:
    with pytest.raises(AttributeError):
        head_score().data = None  # type: ignore[misc, assignment]


@pytest.mark.parametrize(
    ("selector", "labels"),
    [
        (1, ["scene-1"]),
        (-1, ["scene-2"]),
        ("scene-0", ["scene-0"]),
        (["scene-2", "scene-0"], ["scene-2", "scene-0"]),
        ([2, 0], ["scene-2", "scene-0"]),
        (slice(1, None), ["scene-1", "scene-2"]),
    ],
)
def test_selected_samples_keep_their_values(selector: object, labels: list[str]) -> None:
    whole = attribution()
    part = whole.select(selector)  # type: ignore[arg-type]
    assert part.data["sample"].values.tolist() == labels and part.n == len(labels)
    for label in labels:
        expected = whole.data.sel(sample=label)
        assert np.array_equal(part.theta.sel(sample=label).values, expected["theta"].values)
        assert str(part.data["answer"].sel(sample=label).item()) == str(expected["answer"].item())


@pytest.mark.parametrize("selector", [3, -4, "scene-9", [0, 7], [], slice(5, 9)])
def test_samples_that_are_not_there_are_an_error(selector: object) -> None:
    with pytest.raises(ResultError, match="no sample"):
        attribution().select(selector)  # type: ignore[arg-type]


def test_samples_cannot_be_selected_under_summaries_of_them() -> None:
    with pytest.raises(ResultError, match="k80"):
        faithfulness().select(0)
    with pytest.raises(ResultError, match="majority"):
        accuracy().select(0)


def test_tables_are_long_and_carry_intervals() -> None:
    result = attribution()
    table = result.to_pandas()
    assert list(table.columns) == ["sample", "layer", "head", "theta", "lower", "upper"]
    assert len(table) == 3 * 6 * 4
    row = table[(table["sample"] == "scene-1") & (table["layer"] == 3) & (table["head"] == 1)].iloc[0]
    assert row["theta"] == result.theta.values[1, 3, 1]
    assert row["lower"] == result.interval.values[1, 3, 1, 0]


def test_tables_of_curves_do_not_repeat_the_interval_of_the_mean() -> None:
    table = faithfulness().to_pandas()
    assert list(table.columns) == ["method", "sample", "size", "faithfulness", "completeness"]
    assert isinstance(table, pd.DataFrame) and len(table) == 3 * 3 * 11


@pytest.mark.parametrize("make", EVERY_KIND)
def test_text_forms_are_short(make) -> None:
    result = make()
    assert len(repr(result)) < 250 and "\n" not in repr(result)
    assert result.headline() in repr(result)


def test_the_html_form_escapes_what_others_wrote() -> None:
    data = head_score().data.assign_attrs(method="<script>alert(1)</script>")
    page = HeadScoreResult(data=data, info=head_score().info)._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize("make", EVERY_KIND)
def test_every_result_draws_itself(make) -> None:
    assert isinstance(make().plot(), go.Figure)


def test_loading_drawing_and_reporting_need_no_torch(tmp_path: Path) -> None:
    path = attribution().save(tmp_path / "r.mmlens")
    code = (
        "import sys; from mmlens.result import Result; from mmlens.report import write_report\n"
        f"r = Result.load({str(path)!r}); r.plot(); r.to_pandas(); r.top(3)\n"
        f"write_report({str(tmp_path / 'r.html')!r}, title='t', attribution=r)\n"
        "assert not {'torch', 'transformers', 'transformer_lens'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert (tmp_path / "r.html").stat().st_size > 1_000_000
