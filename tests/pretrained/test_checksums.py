import json

import pytest

from mmlens.errors import CheckpointError
from mmlens.pretrained.checksums import SUMS, seal, verify


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weights").write_bytes(bytes(1000))
    seal(tmp_path)
    return tmp_path


def test_a_sealed_folder_verifies_and_can_be_sealed_again(folder):
    verify(folder)
    before = (folder / SUMS).read_text()
    seal(folder)
    assert (folder / SUMS).read_text() == before
    assert set(json.loads(before)) == {"config.json", "weights"}


def test_one_changed_byte_is_found(folder):
    (folder / "weights").write_bytes(bytes(999) + b"\1")
    with pytest.raises(CheckpointError, match="weights is not the file that was shipped: its SHA-256 is"):
        verify(folder)


def test_a_missing_file_is_named(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        verify(folder)


@pytest.mark.parametrize("damage", ["", "{"])
def test_a_damaged_list_is_refused(folder, damage):
    (folder / SUMS).write_text(damage)
    with pytest.raises(CheckpointError, match=f"{SUMS} cannot be read"):
        verify(folder)
