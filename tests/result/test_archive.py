"""The sealed file: no changed, missing or added byte goes unnoticed; failed writes keep the old file."""

import hashlib
import io
import os
import resource
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mmlens.errors import ResultError
from mmlens.result.archive import array_to_npy, npy_to_array, read_bytes, seal, unseal, write_atomically

MEMBERS = {"meta.json": b'{"a": 1}', "x.npy": bytes(range(256)) * 2}


def test_members_come_back() -> None:
    assert unseal(seal(MEMBERS), "file") == MEMBERS


def test_same_members_give_the_same_bytes() -> None:
    assert seal(MEMBERS) == seal(dict(MEMBERS))


def test_any_zip_tool_can_open_it() -> None:
    with zipfile.ZipFile(io.BytesIO(seal(MEMBERS))) as archive:
        assert archive.testzip() is None
        assert archive.read("x.npy") == MEMBERS["x.npy"]


def test_every_flipped_bit_is_noticed() -> None:
    data = seal(MEMBERS)
    for at in range(len(data) * 8):
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(ResultError):
            unseal(bytes(changed), "file")


def test_every_cut_is_noticed() -> None:
    data = seal(MEMBERS)
    for length in range(len(data)):
        with pytest.raises(ResultError, match=r"cut short|corrupt"):
            unseal(data[:length], "file")


@pytest.mark.parametrize("junk", [b"x", b"sha256:" + b"0" * 64, b"PK\x05\x06" + bytes(18)])
def test_added_bytes_are_noticed(junk: bytes) -> None:
    with pytest.raises(ResultError):
        unseal(seal(MEMBERS) + junk, "file")
    with pytest.raises(ResultError):
        unseal(junk + seal(MEMBERS), "file")


def test_rightly_sealed_nonsense_is_refused() -> None:
    body = b"no zip at all"
    with pytest.raises(ResultError, match="not an mmlens result"):
        unseal(body + b"sha256:" + hashlib.sha256(body).hexdigest().encode(), "file")


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4)])
def test_arrays_come_back(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    back = npy_to_array(array_to_npy(array))
    assert back.dtype == array.dtype and back.shape == shape and np.array_equal(back, array)


def test_numpy_reads_our_arrays() -> None:
    array = np.random.default_rng(0).normal(size=(3, 4)).T
    assert np.array_equal(np.load(io.BytesIO(array_to_npy(array)), allow_pickle=False), array)


def test_pickled_arrays_are_refused() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="object"):
        npy_to_array(buffer.getvalue())


@pytest.mark.parametrize("promised", [b"(3,)", b"(9,)"])
def test_an_array_that_promises_more_than_it_holds_is_refused(promised: bytes) -> None:
    with pytest.raises(ValueError, match="do not hold"):
        npy_to_array(array_to_npy(np.zeros(2)).replace(b"(2,)", promised))


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="No such file"):
        read_bytes(tmp_path / "absent.mmlens")


def test_writing_replaces_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.mmlens"
    target.write_bytes(b"old")
    os.link(target, tmp_path / "link")  # what a reader sees who opened the old file before
    assert write_atomically(target, b"new") == target
    assert target.read_bytes() == b"new" and (tmp_path / "link").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["a.mmlens", "link"]


def test_the_new_file_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    written = write_atomically(tmp_path / "a", b"")
    assert written.stat().st_mode == (tmp_path / "plain").stat().st_mode


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Like a full disk: the system refuses to write more than ``limit`` bytes into any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [0, 1, 4096, 99_999])
def test_a_full_disk_leaves_the_old_file_and_no_fragment(tmp_path: Path, limit: int) -> None:
    target = tmp_path / "a.mmlens"
    target.write_bytes(b"old")
    with file_size_limit(limit), pytest.raises(ResultError, match="unchanged"):
        write_atomically(target, bytes(100_000))
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.mmlens"]


def test_an_interrupt_leaves_the_old_file_and_no_fragment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_handle: int) -> None:
        raise KeyboardInterrupt

    target = tmp_path / "a.mmlens"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.mmlens"]


def test_a_missing_folder_and_a_folder_as_target_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="Create it first"):
        write_atomically(tmp_path / "no" / "a.mmlens", b"")
    with pytest.raises(ResultError, match="is a folder"):
        write_atomically(tmp_path, b"")
