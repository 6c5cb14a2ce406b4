"""One sealed file per result: an ordinary zip whose comment is the SHA-256 of everything before it.

Why a zip of ``.npy`` and JSON members, and not safetensors, parquet or netCDF: any zip tool and
``numpy.load`` can open it without mmlens, nothing in it can execute, it needs no dependency, and *one* digest
covers every byte, names and metadata included. Zip's own CRC32 covers only the members' contents, and
safetensors has no checksum at all, so both let some flipped bits through. Members carry no time stamp: the
same result gives the same bytes.

Writes are atomic: a temporary file in the same folder, fsync, rename. Whatever goes wrong, the old file
stays.
"""

import hashlib
import io
import math
import os
import secrets
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmlens.errors import ResultError

_SEAL = b"sha256:"
_SEAL_BYTES = len(_SEAL) + 64
_MAX_BYTES = 16 * 2**30


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Writes ``data`` to ``path`` entirely or not at all, and returns the path.

    Raises:
        ResultError: the folder is missing or not writable, or the disk is full; an existing file is
            untouched.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise ResultError(
            f"cannot write {target}: the folder {target.parent} does not exist. Create it first."
        )
    if target.is_dir():
        raise ResultError(f"cannot write {target}: it is a folder. Give the name of a file.")
    temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise ResultError(
            f"cannot write {target}: {error.strerror or error}. An older file of that name is unchanged; "
            "free some space or choose another folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return target


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the platform can open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def seal(members: Mapping[str, bytes]) -> bytes:
    """Packs named members into sealed zip bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        archive.comment = b"." * _SEAL_BYTES
    body = buffer.getvalue()[:-_SEAL_BYTES]
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode()


def unseal(data: bytes, source: str) -> dict[str, bytes]:
    """Checks the seal and returns the members.

    Args:
        data: the whole file.
        source: name used in error messages.

    Raises:
        ResultError: a byte is missing, added or changed, or the content is not such a file at all.
    """
    body, found = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    if not found.startswith(_SEAL):
        raise ResultError(
            f"{source} does not end in an mmlens checksum: it is cut short, or not an mmlens result. Copy "
            "it again from its source, or compute it again."
        )
    if found != _SEAL + hashlib.sha256(body).hexdigest().encode():
        raise ResultError(
            f"{source} is corrupt: its content does not match its checksum. Copy it again from its source, "
            "or compute it again."
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(item.file_size for item in archive.infolist()) > _MAX_BYTES:
                raise ResultError(f"{source} would unpack to more than {_MAX_BYTES} bytes; it is refused.")
            return {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise ResultError(f"{source} is not an mmlens result: {error}. Compute it again.") from error


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a file.

    Raises:
        ResultError: it does not exist or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror or error}. Check the path.") from error


def array_to_npy(array: np.ndarray) -> bytes:
    """An array as the bytes of a ``.npy`` file (no pickle)."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
    return buffer.getvalue()


def npy_to_array(data: bytes) -> np.ndarray:
    """The array in the bytes of a ``.npy`` file.

    Raises:
        ValueError: the header is malformed, asks for Python objects, or promises more than there is.
    """
    buffer = io.BytesIO(data)
    version = np.lib.format.read_magic(buffer)
    if version != (1, 0):
        raise ValueError(f"npy version {version} is not supported")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(buffer)
    if dtype.hasobject or fortran:
        raise ValueError(f"arrays of dtype {dtype} or in Fortran order are not read")
    if len(data) - buffer.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{len(data) - buffer.tell()} bytes do not hold an array of shape {shape} and dtype {dtype}"
        )
    return np.frombuffer(data, dtype=dtype, offset=buffer.tell()).reshape(shape).copy()
