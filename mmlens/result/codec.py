"""A result as the members of a sealed archive, and back.

``meta.json`` holds format, version, kind, attributes, provenance and the name, dimensions and kind of every
variable; each numeric variable is a ``.npy`` member and each text variable a JSON list (npy text cannot hold
every string).
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pydantic
import xarray as xr

from mmlens.errors import ResultError
from mmlens.result.archive import array_to_npy, npy_to_array
from mmlens.result.provenance import RunInfo

FORMAT = "mmlens-result"
VERSION = 1


def encode(kind: str, data: xr.Dataset, info: RunInfo) -> dict[str, bytes]:
    """Members of the archive of one result.

    Raises:
        ResultError: an attribute is not a JSON value, or a variable's name cannot be a file name.
    """
    members: dict[str, bytes] = {}
    variables = {}
    for name, variable in data.variables.items():
        entry, content = _encode_variable(str(name), variable)
        variables[name] = {**entry, "coord": name in data.coords}
        members[entry["member"]] = content
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "mmlens": info.versions.get("mmlens", ""),
        "kind": kind,
        "attrs": dict(data.attrs),
        "variables": variables,
        "info": json.loads(info.model_dump_json()),
    }
    try:
        text = json.dumps(meta, indent=1, default=_plain_number)
    except TypeError as error:
        raise ResultError(f"an attribute of this {kind} result is not a JSON value: {error}") from error
    return {"meta.json": text.encode(), **members}


def _encode_variable(name: str, variable: xr.Variable) -> tuple[dict[str, Any], bytes]:
    """Description and bytes of one variable."""
    if not re.fullmatch(r"\w+", name):
        raise ResultError(f"variable name {name!r} cannot be stored; use letters, digits and underscores.")
    values = variable.values
    entry = {"dims": list(variable.dims), "shape": list(values.shape), "attrs": dict(variable.attrs)}
    if values.dtype.kind in "OUT":
        content = json.dumps([str(text) for text in values.ravel().tolist()]).encode()
        return {**entry, "member": f"{name}.json"}, content
    return {**entry, "member": f"{name}.npy"}, array_to_npy(values)


def _plain_number(value: Any) -> Any:
    """Numpy numbers as Python numbers, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} {value!r}")


def decode(members: Mapping[str, bytes], source: str) -> tuple[str, xr.Dataset, RunInfo]:
    """Kind, data and provenance stored in an archive.

    Args:
        members: what ``unseal`` returned.
        source: name used in error messages.

    Raises:
        ResultError: the archive is not a result, was written in a newer format, or is inconsistent.
    """
    try:
        meta = json.loads(members["meta.json"])
        known = meta["format"] == FORMAT
        version = int(meta["version"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ResultError(
            f"{source} is not an mmlens result: no readable meta.json. Check the file."
        ) from error
    if not known:
        raise ResultError(f"{source} is a {meta['format']!r} file, not an mmlens result. Check the file.")
    if version > VERSION:
        raise ResultError(
            f"{source} is in format {version}, written by mmlens {meta.get('mmlens')}; this mmlens reads up "
            f"to format {VERSION}. Upgrade mmlens."
        )
    try:
        variables = {name: _decode_variable(entry, members) for name, entry in meta["variables"].items()}
        coords = {name: variables.pop(name) for name, entry in meta["variables"].items() if entry["coord"]}
        data = xr.Dataset(variables, coords=coords, attrs=meta["attrs"])
        return str(meta["kind"]), data, RunInfo.model_validate_json(json.dumps(meta["info"]))
    except (KeyError, TypeError, ValueError, AttributeError, pydantic.ValidationError) as error:
        raise ResultError(f"{source} is inconsistent: {error}. Compute the result again.") from error


def _decode_variable(entry: Mapping[str, Any], members: Mapping[str, bytes]) -> xr.Variable:
    """One stored variable."""
    content = members[entry["member"]]
    if entry["member"].endswith(".json"):
        values = np.array([*json.loads(content), None], dtype=object)[:-1].reshape(entry["shape"])
    else:
        values = npy_to_array(content)
    return xr.Variable(entry["dims"], values, attrs=entry["attrs"])
