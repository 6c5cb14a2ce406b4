"""Files of a sweep: nothing half-written, nothing damaged unnoticed, and a full disk loses nothing."""

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmlens.errors import DiskFull, SweepError
from mmlens.result.archive import seal
from mmlens.sweeps.store import SweepFolder
from mmlens.sweeps.unit import content_address
from tests.architecture import ROOT

A, B, C = "a" * 64, "b" * 64, "c" * 64
MANIFEST: dict[str, Any] = {"analysis": "x", "options": {"seed": 1}, "units": [A, B]}


def shard(address: str, n_bytes: int = 0) -> bytes:
    meta = f'{{"info": {{"settings": {{"unit": "{address}"}}}}}}'
    return seal({"meta.json": meta.encode(), "noise.npy": np.random.default_rng(0).bytes(n_bytes)})


@contextmanager
def file_size_limit(n_bytes: int) -> Iterator[None]:
    """The operating system refuses to let any file of this process grow further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_written_is_found_again(tmp_path: Path) -> None:
    folder = SweepFolder.open(tmp_path / "deep" / "new", MANIFEST)
    assert folder.check(A) == "absent"
    folder.write(A, shard(A))
    again = SweepFolder.open(tmp_path / "deep" / "new", MANIFEST)
    assert (again.check(A), again.check(B)) == ("whole", "absent")
    assert again.manifest()["units"] == [A, B]


@pytest.mark.parametrize(("name", "other"), [("analysis", "y"), ("options", {"seed": 2})])
def test_another_sweep_is_refused_by_what_differs(tmp_path: Path, name: str, other: Any) -> None:
    SweepFolder.open(tmp_path, MANIFEST)
    with pytest.raises(SweepError, match=f"another sweep: {name} is .* there and .* here"):
        SweepFolder.open(tmp_path, MANIFEST | {name: other})


# --- the list of units


def units(path: Path, given: list[str | None]) -> list[str | None]:
    """Opens a folder for a list of units; what the manifest says then."""
    return SweepFolder.open(path, MANIFEST | {"units": given}).manifest()["units"]


@pytest.mark.parametrize(
    ("there", "here", "then"),
    [
        ([A], [A, B], [A, B]),
        ([A, B], [A], [A, B]),
        ([A, None], [A, None, C], [A, None, C]),
        ([A, None, C], [None, B], [A, B, C]),
        ([None], [A, B], [A, B]),
    ],
)
def test_of_two_lists_the_longer_one_stays_with_every_address(
    tmp_path: Path, there: list[str | None], here: list[str | None], then: list[str | None]
) -> None:
    units(tmp_path, there)
    assert units(tmp_path, here) == then and units(tmp_path, there) == then
    assert not list((tmp_path / "quarantine").iterdir())


@pytest.mark.parametrize(
    ("there", "here", "sample"),
    [([A, B], [B, A], 0), ([A, B], [A, C], 1), ([A, B], [A, C, B], 1), ([A, None, C], [A, B, A], 2)],
)
def test_any_other_list_is_refused_by_the_first_sample_that_differs(
    tmp_path: Path, there: list[str | None], here: list[str | None], sample: int
) -> None:
    units(tmp_path, there)
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(SweepError, match=f"another sweep: sample {sample} is another one there than here"):
        units(tmp_path, here)
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_shorter_list_that_was_late_does_not_take_back_what_another_writer_added(tmp_path: Path) -> None:
    """The writer of the short list has seen an empty folder; the other one writes before it does."""
    folder, started = SweepFolder.open(tmp_path, MANIFEST), threading.Event()
    (tmp_path / "manifest.json").unlink()
    with (tmp_path / ".manifest.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        late = threading.Thread(target=lambda: (started.set(), units(tmp_path, [A])))
        late.start()
        started.wait()
        late.join(0.5)
        assert late.is_alive() and not (tmp_path / "manifest.json").exists()
        content = {"format": 1, **MANIFEST, "units": [A, B]}
        sealed = json.dumps({**content, "sha256": content_address(content)})
        (tmp_path / "manifest.json").write_text(sealed)
    late.join(30)
    assert not late.is_alive() and folder.manifest()["units"] == [A, B]


def test_the_lock_of_a_killed_writer_holds_nobody_up(tmp_path: Path) -> None:
    SweepFolder.open(tmp_path, MANIFEST | {"units": [A]})
    hold = (
        "import fcntl, sys, time; fcntl.flock(open(sys.argv[1], 'ab'), fcntl.LOCK_EX); print(1, flush=True)"
    )
    command = [sys.executable, "-c", f"{hold}; time.sleep(99)", str(tmp_path / ".manifest.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"1\n"
        holder.kill()
    assert units(tmp_path, [A, B]) == [A, B]


# --- damage


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path: Path) -> None:
    folder = SweepFolder.open(tmp_path, MANIFEST)
    good = shard(A)
    for place in range(0, len(good), 5):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        for damaged in (bytes(bad), good[:place]):
            folder.file(A).write_bytes(damaged)
            assert folder.check(A) == "damaged" and not folder.file(A).exists()
            [kept] = (tmp_path / "quarantine").iterdir()
            assert kept.read_bytes() == damaged
            kept.unlink()
    folder.write(B, good)  # whole, but of another unit
    assert folder.check(B) == "damaged"


def test_every_flipped_byte_of_the_manifest_is_noticed_and_mended(tmp_path: Path) -> None:
    folder = SweepFolder.open(tmp_path, MANIFEST)
    file = tmp_path / "manifest.json"
    good = file.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        file.write_bytes(bytes(bad))
        try:
            assert folder.manifest() == {"format": 1, **MANIFEST}  # white space became other white space
        except SweepError as error:
            assert "run the sweep again" in str(error)
    file.write_bytes(good[:40])
    SweepFolder.open(tmp_path, MANIFEST)
    assert file.read_bytes() == good
    assert [one.read_bytes() for one in (tmp_path / "quarantine").iterdir()] == [good[:40]]


def test_no_manifest_is_an_error_to_readers(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"manifest.json is not there"):
        list(SweepFolder(path=tmp_path).results())


def test_a_file_that_may_not_grow_leaves_what_was_there(tmp_path: Path) -> None:
    folder = SweepFolder.open(tmp_path, MANIFEST)
    folder.write(A, shard(A))
    with (
        file_size_limit(4096),
        pytest.raises(DiskFull, match=r"1 finished units in .* are whole and stay; make room"),
    ):
        folder.write(B, shard(B, 100_000))
    assert (folder.check(A), folder.check(B)) == ("whole", "absent")
    assert [file.name for file in (tmp_path / "units").iterdir()] == [f"{A}.mmlens"]
    folder.write(B, shard(B, 100_000))
    assert folder.check(B) == "whole"


FILL = """
import sys
from pathlib import Path
from mmlens.errors import DiskFull
from tests.sweeps.test_store import MANIFEST, shard
from mmlens.sweeps.store import SweepFolder
folder = SweepFolder.open(Path(sys.argv[1]) / "sweep", MANIFEST)
written = []
try:
    for i in range(64):
        folder.write(f"{i:064x}", shard(f"{i:064x}", 100_000))
        written.append(f"{i:064x}")
except DiskFull as error:
    assert f"{len(written)} finished units" in str(error), error
    assert 5 < len(written) < 11, written
    assert [folder.check(one) for one in written] == ["whole"] * len(written)
    assert len(list(Path(sys.argv[1]).glob("sweep/units/*"))) == len(written)
    assert not list(Path(sys.argv[1]).glob("sweep/units/.*"))
    folder.file(written[0]).unlink()
    folder.write(f"{99:064x}", shard(f"{99:064x}", 50_000))
    sys.exit(42)
"""


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """A file system of one megabyte, in a name space of its own."""
    mount = f"mount -t tmpfs -o size=1m none '{tmp_path}'"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "sh", "-c", mount]).returncode:
        pytest.skip("this user may not mount a file system")
    command = f"{mount} && exec '{sys.executable}' -c \"$FILL\" '{tmp_path}'"
    env = {**os.environ, "FILL": FILL, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert run.returncode == 42, run.stderr


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(SweepError, match="cannot make the folder"):
        SweepFolder.open(tmp_path / "file" / "sweep", MANIFEST)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    folder = SweepFolder.open(tmp_path, MANIFEST)
    shutil.rmtree(tmp_path / "units")
    (tmp_path / "units").write_text("no folder")
    with pytest.raises(SweepError, match=r"cannot write .* Finished units stay"):
        folder.write(A, shard(A))


@pytest.mark.parametrize("address", ["../../x", "", "A" * 64, "a" * 63])
def test_only_addresses_name_files(tmp_path: Path, address: str) -> None:
    with pytest.raises(SweepError, match="no address"):
        SweepFolder(path=tmp_path).file(address)


def test_old_leftovers_of_killed_writers_are_removed_and_fresh_ones_stay(tmp_path: Path) -> None:
    SweepFolder.open(tmp_path, MANIFEST)
    old, fresh = (tmp_path / "units" / f".{name}.mmlens.0123.tmp" for name in (A, B))
    for file in (old, fresh):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    SweepFolder.open(tmp_path, MANIFEST)
    assert (old.exists(), fresh.exists()) == (False, True)
