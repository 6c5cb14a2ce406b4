"""Provenance names versions without importing packages, survives JSON, and refuses what is not plain data."""

import platform
from importlib import metadata
from typing import Any

import pydantic
import pytest

from mmlens import __version__
from mmlens.errors import ResultError
from mmlens.result import RunInfo
from tests.result.examples import run_info

REQUIRED: dict[str, Any] = {"model_id": "m", "weight_fingerprint": "f", "dtype": "float32", "device": "cpu"}


def test_versions_are_those_installed() -> None:
    versions = run_info().versions
    assert versions["python"] == platform.python_version()
    assert versions["mmlens"] == __version__
    for package in ("torch", "transformers", "transformer_lens", "numpy"):
        assert versions[package] == metadata.version(package)


def test_json_round_trip() -> None:
    info = run_info()
    assert RunInfo.model_validate_json(info.model_dump_json()) == info


def test_infinite_settings_survive() -> None:
    info = RunInfo.collect(**REQUIRED, settings={"alpha": float("inf"), "nested": {"a": [1, None, True]}})
    assert RunInfo.model_validate_json(info.model_dump_json()).settings == info.settings


def test_it_is_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        run_info().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "change",
    [{"model_id": ""}, {"seconds": -1.0}, {"settings": {"x": object()}}, {"settings": {"x": {1, 2}}}],
)
def test_malformed_provenance_is_refused(change: dict) -> None:
    with pytest.raises(ResultError, match="provenance"):
        RunInfo.collect(**(REQUIRED | change))


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="extra"):
        RunInfo(**REQUIRED, sed=1)  # type: ignore[call-arg]


def test_rows_leave_out_what_is_unknown() -> None:
    rows = dict(RunInfo.collect(**REQUIRED, seed=0, settings={"keep": 0.5}).rows())
    assert rows["seed"] == "0" and rows["setting: keep"] == "0.5"
    assert "revision" not in rows and "prompts" not in rows
