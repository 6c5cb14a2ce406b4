"""The folder of a sweep: a manifest, one sealed file per unit, and a place for what was found damaged.

    manifest.json               what the sweep is, and the addresses of its units in sample order
    units/<address>.mmlens      the result of one unit, an ordinary result file
    quarantine/                 files whose checksum did not hold, kept for a look

Every file is written whole or not at all. Units are named by their content's address, so there is nothing to lock: two
writers of one unit write the same bytes, and the later rename changes nothing. The manifest grows with the list of
prompts; it is read, joined and rewritten under a lock of the operating system on ``.manifest.lock``, which ends with
its process, so that of two writers the one with the shorter list cannot take back what the other has added.
"""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from mmlens.errors import DiskFull, ResultError, SweepError
from mmlens.result import Result
from mmlens.result.archive import read_bytes, unseal, write_atomically
from mmlens.sweeps.unit import content_address

FORMAT = 1
_MANIFEST = "manifest.json"
_SEAL = "sha256"
_LOCK = ".manifest.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STALE_SECONDS = 24 * 3600
"""Half-written files that are older belong to no living writer."""

State = Literal["whole", "damaged", "absent"]


@dataclass(frozen=True, kw_only=True)
class SweepFolder:
    """The files of one sweep.

    Attributes:
        path: where.
    """

    path: Path

    @classmethod
    def open(cls, path: str | os.PathLike[str], manifest: Mapping[str, Any]) -> "SweepFolder":
        """The folder, for the sweep that the manifest describes; made where it is not there.

        Of two lists of units, one of which begins with the other, the longer one stays in the manifest. A sample that
        cannot be read has no address (None) until a run can read it. A manifest that fails its own checksum goes to
        quarantine and is written anew.

        Raises:
            DiskFull: there is no room for the manifest.
            SweepError: the folder belongs to another sweep, or cannot be made or written.
        """
        folder = cls(path=Path(path))
        wanted = json.loads(json.dumps({"format": FORMAT, **manifest}))
        for place in (folder.path, folder.path / "units", folder.path / "quarantine"):
            _make(place)
        found = folder._stored_manifest()
        if not isinstance(found, dict) or _joined(folder.path, found, wanted) != found:
            folder._rewrite(wanted)
        folder._remove_stale()
        return folder

    def _rewrite(self, wanted: dict[str, Any]) -> None:
        """Joins a manifest with the one that is there by now, and writes what that changes."""
        with self._locked():
            found = self._stored_manifest()
            if isinstance(found, str):
                self._quarantine(self.path / _MANIFEST)
            joined = _joined(self.path, found, wanted) if isinstance(found, dict) else wanted
            if joined != found:
                text = json.dumps({**joined, _SEAL: content_address(joined)}, indent=1)
                self._put(self.path / _MANIFEST, text.encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer of the manifest at a time, wherever the file system knows locks."""
        try:
            file = (self.path / _LOCK).open("ab")
        except OSError as error:
            kind = DiskFull if error.errno in _FULL else SweepError
            raise kind(f"cannot write in {self.path}: {error.strerror or error}.") from error
        with file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            except ImportError:
                pass  # Windows
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise SweepError(f"cannot lock {file.name}: {error.strerror or error}.") from error
            yield

    def manifest(self) -> dict[str, Any]:
        """What the folder says of its sweep.

        Raises:
            SweepError: there is no manifest, or it is damaged.
        """
        found = self._stored_manifest()
        if isinstance(found, dict):
            return found
        told = found or "is not there"
        raise SweepError(
            f"{self.path / _MANIFEST} {told}: run the sweep again with this folder, which writes it anew and computes "
            "only what is missing."
        )

    def _stored_manifest(self) -> dict[str, Any] | str | None:
        """The manifest; what is wrong with it; or None if there is none."""
        if not (self.path / _MANIFEST).exists():
            return None
        try:
            found = dict(json.loads(read_bytes(self.path / _MANIFEST)))
        except (ResultError, ValueError, TypeError, RecursionError) as error:
            return f"is damaged ({error})"
        stated = found.pop(_SEAL, None)
        return found if stated == content_address(found) else "is damaged (its checksum does not hold)"

    def file(self, address: str) -> Path:
        """File of a unit.

        Raises:
            SweepError: that is no address.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", address):
            raise SweepError(f"{address!r} is no address of a unit: 64 hexadecimal digits are.")
        return self.path / "units" / f"{address}.mmlens"

    def check(self, address: str) -> State:
        """Whether a unit's file is there and every byte of it as written; a damaged one goes to quarantine."""
        file = self.file(address)
        if not file.exists():
            return "absent"
        try:
            meta = json.loads(unseal(read_bytes(file), str(file))["meta.json"])
            if meta["info"]["settings"]["unit"] == address:
                return "whole"
        except (ResultError, KeyError, TypeError, ValueError):
            pass  # damaged, as below
        self._quarantine(file)
        return "damaged"

    def write(self, address: str, shard: bytes) -> None:
        """Writes a unit's file whole or not at all.

        Raises:
            DiskFull: there is no room.
            SweepError: the folder cannot be written.
        """
        self._put(self.file(address), shard)

    def results(self) -> Iterator[tuple[str | None, Result | None]]:
        """Address and result of every unit in sample order; None where there is none yet.

        Raises:
            SweepError: the manifest is damaged, or a unit's file is.
        """
        for address in self.manifest()["units"]:
            if address is None:
                yield None, None
                continue
            state = self.check(address)
            if state == "damaged":
                raise SweepError(
                    f"{self.file(address)} was damaged and is in quarantine now: run the sweep again with this folder, "
                    "which computes this unit anew."
                )
            yield address, Result.load(self.file(address)) if state == "whole" else None

    def _put(self, file: Path, content: bytes) -> None:
        try:
            write_atomically(file, content)
        except ResultError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in _FULL:
                raise DiskFull(
                    f"{file} could not be written: {cause.strerror}. {self.n_units()} finished units in {self.path} "
                    "are whole and stay; make room and run the sweep again, which goes on from there."
                ) from error
            raise SweepError(f"{error} Finished units stay; run the sweep again to go on.") from error

    def n_units(self) -> int:
        """Files of units that are there, unread."""
        return len(list((self.path / "units").glob("*.mmlens")))

    def _quarantine(self, file: Path) -> None:
        """Moves a file aside, under a name that says what is in it; another writer may have done so already."""
        try:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
            os.replace(file, self.path / "quarantine" / f"{file.stem}.{digest}{file.suffix}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise SweepError(
                f"{file} is damaged and cannot be moved aside: {error.strerror}. Remove it."
            ) from error

    def _remove_stale(self) -> None:
        """Removes what killed writers left half-written, but nothing that a living one may be writing."""
        for place in (self.path, self.path / "units"):
            for file in place.glob(".*.tmp"):
                try:
                    if time.time() - file.stat().st_mtime > _STALE_SECONDS:
                        file.unlink()
                except OSError:
                    continue  # its writer was quicker


def _make(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        kind = DiskFull if error.errno in _FULL else SweepError
        raise kind(f"cannot make the folder {place}: {error.strerror or error}. Choose another.") from error


def _joined(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Two manifests of one sweep as one: every address that either has, and the longer list of samples.

    Raises:
        SweepError: they are of different sweeps.
    """
    for name in {**wanted, **found}:
        there, here = found.get(name), wanted.get(name)
        if name != "units" and there != here:
            raise SweepError(
                f"the folder {path} holds another sweep: {name} is {there!r} there and {here!r} here. Give a folder of "
                "its own to each sweep, or the same model and options."
            )
    there, here = list(found.get("units") or []), list(wanted["units"])
    for number, (old, new) in enumerate(zip(there, here, strict=False)):
        if old != new and None not in (old, new):
            raise SweepError(
                f"the folder {path} holds another sweep: sample {number} is another one there than here ({len(there)} "
                f"samples there, {len(here)} here). Give a folder of its own to each list of prompts; a list may only "
                "grow at its end."
            )
    pairs = zip_longest(there, here)
    return {**wanted, "units": [new if old is None else old for old, new in pairs]}
