"""The base of every result: named arrays with units and provenance that save, load and plot."""

import html
import os
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pandas as pd
import xarray as xr

from mmlens.errors import ResultError
from mmlens.result.archive import read_bytes, seal, unseal, write_atomically
from mmlens.result.codec import decode, encode
from mmlens.result.provenance import RunInfo
from mmlens.result.schema import Variable, conform

REMOVAL_SIGN = "positive = removing it hurts the answer"
"""The sign convention of every importance score."""


_R = TypeVar("_R", bound="Result")  # not typing.Self, which run-time type checks of methods cannot resolve


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Result(ABC):
    """Named arrays of one analysis and where they came from.

    A new kind of result is one file with one final subclass, imported in ``mmlens/result/__init__.py``; it
    states the class attributes below and ``headline``. Saving, loading, tables and checks come from here.

    Attributes:
        data: the arrays. Copied, checked against ``variables`` and completed (default coordinates; ``unit``,
            ``sign`` and ``description`` of each variable) on construction.
        info: provenance of the run.
        kind: name under which the class is stored in files.
        main: name of the variable that ``to_pandas`` puts in its rows.
        variables: every variable the result must or may hold.
        required_attrs: dataset attributes that must be non-empty strings.
        plotter: ``module:function`` of the default figure.
        of_all_samples: whether the main variable is one answer for all samples together, so that an analysis of one
            sample at a time would not be the same analysis.

    Raises:
        ResultError: on construction, if ``data`` is not what the class describes.
    """

    kind: ClassVar[str]
    main: ClassVar[str]
    variables: ClassVar[Mapping[str, Variable]]
    required_attrs: ClassVar[tuple[str, ...]]
    plotter: ClassVar[str]
    of_all_samples: ClassVar[bool] = False

    data: xr.Dataset
    info: RunInfo

    def __post_init__(self) -> None:
        data = conform(self.data, kind=self.kind, variables=self.variables, attrs=self.required_attrs)
        object.__setattr__(self, "data", data)
        self.check()

    def check(self) -> None:  # noqa: B027 - most results have nothing to add
        """Checks that go beyond names, axes and finiteness.

        Raises:
            ResultError: values contradict each other.
        """

    @abstractmethod
    def headline(self) -> str:
        """The result in one line of plain text."""

    @property
    def n(self) -> int:
        """Number of samples (0 if this kind of result has no sample axis)."""
        return self.data.sizes.get("sample", 0)

    def to_pandas(self) -> pd.DataFrame:
        """A long table: one row per element of the main variable, its interval beside it.

        Returns:
            One column per axis, one per variable with the same axes, and ``lower``/``upper`` where there is
            an interval.
        """
        dims = self.data[self.main].dims
        columns = {
            str(n): v.reset_coords(drop=True) for n, v in self.data.data_vars.items() if v.dims == dims
        }
        for name in ("interval", f"{self.main}_interval"):
            if name in self.data and self.data[name].dims == (*dims, "bound"):
                bounds = self.data[name].reset_coords(drop=True)
                columns["lower"] = bounds.sel(bound="lower", drop=True)
                columns["upper"] = bounds.sel(bound="upper", drop=True)
        return xr.Dataset(columns).to_dataframe(dim_order=list(dims)).reset_index()

    def select(self: _R, sample: int | str | slice | Sequence[int] | Sequence[str]) -> _R:
        """The same result for some of its samples; the sample axis stays.

        Args:
            sample: position, label, slice of positions, or a list of positions or labels.

        Raises:
            ResultError: no such sample, or other variables summarise all samples and would no longer match.
        """
        fixed = [str(name) for name, array in self.data.data_vars.items() if "sample" not in array.dims]
        if fixed:
            raise ResultError(
                f"samples of a {self.kind} result cannot be selected: {', '.join(fixed)} would no longer "
                "match. Compute it again for these samples, or select in .data."
            )
        return type(self)(data=self.data.isel(sample=self._sample_indices(sample)), info=self.info)

    def _sample_indices(self, sample: int | str | slice | Sequence[int] | Sequence[str]) -> list[int]:
        """Positions of the samples that a selector names."""
        if isinstance(sample, slice):
            chosen = list(range(self.n))[sample]
        else:
            given = [sample] if isinstance(sample, (int, str)) else list(sample)
            labels = [str(label) for label in self.data["sample"].values.tolist()]
            known = {label: i for i, label in enumerate(labels)} | {i: i for i in range(-self.n, self.n)}
            unknown = [one for one in given if one not in known]
            if unknown:
                raise ResultError(
                    f"no sample {unknown[0]!r}; there are {self.n}, labelled {', '.join(labels[:8])}."
                )
            chosen = [known[one] % self.n for one in given]
        if not chosen:
            raise ResultError(f"the selector {sample!r} names no sample; there are {self.n}.")
        return chosen

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes one sealed file (extension ``.mmlens`` by custom), entirely or not at all.

        Raises:
            ResultError: it cannot be written; an older file of that name is unchanged.
        """
        return write_atomically(path, seal(encode(self.kind, self.data, self.info)))

    @classmethod
    def load(cls: type[_R], path: str | os.PathLike[str]) -> _R:
        """Reads a saved result: ``Result.load`` any kind, a subclass only its own.

        Raises:
            ResultError: the file is missing, corrupt, of another kind, or in a newer format.
        """
        kind, data, info = decode(unseal(read_bytes(path), str(path)), str(path))
        found = _final_classes(Result).get(kind)
        if found is None:
            raise ResultError(
                f"{path} holds a {kind!r} result, which this mmlens does not know. Upgrade mmlens."
            )
        if not issubclass(found, cls):
            raise ResultError(
                f"{path} holds a {kind!r} result, not {cls.kind!r}. Load it with {found.__name__}.load."
            )
        return found(data=data, info=info)

    def plot(self, **options: Any) -> Any:
        """The default figure of this kind of result (plotly; it is returned, never shown).

        Args:
            **options: passed to the plotting function that ``plotter`` names.
        """
        return pkgutil.resolve_name(self.plotter)(self, **options)

    def __repr__(self) -> str:
        sizes = _extent(self.data[self.main])
        return f"{type(self).__name__}({self.info.model_id}; {sizes}; {self.headline()})"

    def _repr_html_(self) -> str:
        rows = {"model": self.info.model_id, "result": self.headline()}
        rows |= {name: self.data.attrs[name] for name in self.required_attrs}
        rows |= {
            str(name): f"{_extent(array)} · {array.attrs.get('unit', '')}"
            for name, array in self.data.data_vars.items()
        }
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>"
            for k, v in rows.items()
        )
        return f"<table><caption>{type(self).__name__}</caption>{cells}</table>"


def _extent(array: xr.DataArray) -> str:
    """Axes and their lengths, in words."""
    return ", ".join(f"{size} {dim}" for dim, size in array.sizes.items())


def _final_classes(cls: type[Result]) -> dict[str, type[Any]]:
    """Every final result class by the name of its kind."""
    children = cls.__subclasses__()
    if not children:
        return {cls.kind: cls}
    return {kind: found for child in children for kind, found in _final_classes(child).items()}
