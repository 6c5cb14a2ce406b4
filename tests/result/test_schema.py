"""Datasets that are not what a result describes are refused, by name of the culprit."""

import numpy as np
import pytest
import xarray as xr

from mmlens.errors import ResultError
from mmlens.result import AttributionResult, HeadScoreResult, Variable
from tests.result.examples import attribution_data, run_info


def build(data: xr.Dataset) -> AttributionResult:
    return AttributionResult(data=data, info=run_info())


def test_default_coordinates_are_filled_in() -> None:
    data = build(attribution_data(2)).data
    assert data["sample"].values.tolist() == ["0", "1"]
    assert data["layer"].values.tolist() == list(range(6))
    assert data["bound"].values.tolist() == ["lower", "upper"]


def test_units_signs_and_descriptions_are_filled_in_and_can_be_overridden() -> None:
    given = attribution_data()
    given["interval"].attrs["description"] = "99 % interval"
    data = build(given).data
    assert data["theta"].attrs["unit"] == "logit" and data["r2"].attrs["unit"] == "1"
    assert data["theta"].attrs["sign"] == "positive = removing it hurts the answer"
    assert data["interval"].attrs["description"] == "99 % interval"
    assert all(array.attrs["description"] for array in data.data_vars.values())


def test_the_given_dataset_is_not_changed() -> None:
    given = attribution_data()
    before = given.copy(deep=True)
    build(given)
    assert given.identical(before)


@pytest.mark.parametrize("name", ["theta", "interval", "r2", "intercept", "n_masks"])
def test_missing_variables_are_named(name: str) -> None:
    with pytest.raises(ResultError, match=f"needs {name}"):
        build(attribution_data().drop_vars(name))


@pytest.mark.parametrize("name", ["metric", "unit", "baseline", "estimator", "design"])
@pytest.mark.parametrize("value", [None, "", 3])
def test_missing_attributes_are_named(name: str, value: object) -> None:
    with pytest.raises(ResultError, match=f"missing: {name}"):
        build(attribution_data().assign_attrs({name: value}))


def test_misspelt_variables_are_refused_and_described_ones_kept() -> None:
    data = attribution_data()
    with pytest.raises(ResultError, match="does not know split_halve"):
        build(data.rename(split_half="split_halve"))
    extra = xr.DataArray(np.zeros(3), dims="sample", attrs={"description": "my own"})
    assert "mine" in build(data.assign(mine=extra)).data


def test_unknown_axes_are_refused() -> None:
    with pytest.raises(ResultError, match="unknown axes query_head"):
        build(attribution_data().rename(head="query_head"))
    with pytest.raises(ValueError, match="unknown axes"):
        Variable(dims=("sample", "neuron"), description="x")


def test_transposed_variables_are_refused() -> None:
    data = attribution_data()
    with pytest.raises(ResultError, match="must have axes"):
        build(data.assign(theta=data["theta"].transpose("layer", "sample", "head")))


def test_wrong_dtypes_are_refused() -> None:
    data = attribution_data()
    with pytest.raises(ResultError, match=r"theta .* must hold float"):
        build(data.assign(theta=data["theta"].astype(int)))
    with pytest.raises(ResultError, match=r"n_masks .* must hold int"):
        build(data.assign(n_masks=data["n_masks"].astype(float)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_located(bad: float) -> None:
    data = attribution_data()
    data["theta"].values[1, 2, 3] = bad
    with pytest.raises(ResultError, match=r"theta .*'sample': 1, 'layer': 2, 'head': 3"):
        build(data)


def test_undefined_is_allowed_where_it_has_a_meaning_but_infinite_is_not() -> None:
    data = attribution_data()
    data["r2"].values[0] = np.nan
    assert np.isnan(build(data).r2.values[0])
    data["r2"].values[0] = -np.inf
    with pytest.raises(ResultError, match="not finite"):
        build(data)


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ({"bound": ["low", "high"]}, "must be labelled"),
        ({"bound": ["upper", "lower"]}, "must be labelled"),
        ({"sample": ["a", "a", "b"]}, "not unique"),
        ({"sample": [1, 2, 3]}, "non-empty strings"),
        ({"layer": list("abcdef")}, "integers"),
        ({"layer": [0, 1, 2, 3, 4, 4]}, "not unique"),
    ],
)
def test_wrong_coordinates_are_refused(coords: dict, message: str) -> None:
    with pytest.raises(ResultError, match=message):
        build(attribution_data().assign_coords(coords))


def test_every_score_needs_its_own_sign() -> None:
    data = xr.Dataset({"score": (("sample", "layer", "head"), np.zeros((1, 1, 1)))}, attrs={"method": "m"})
    with pytest.raises(ResultError, match="unit, sign"):
        HeadScoreResult(data=data, info=run_info())
