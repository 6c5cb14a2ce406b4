import shutil

import pytest

from mmlens import pretrained
from mmlens.errors import CheckpointError, ConfigError


def test_scenes_is_there_and_small():
    assert "scenes" in pretrained.names()
    folder = pretrained.path("scenes")
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 3_000_000


@pytest.mark.parametrize("name", ["scene", "", "../weights", "."])
def test_an_unknown_name_lists_those_there_are(name):
    with pytest.raises(ConfigError, match=r"there are: .*scenes"):
        pretrained.path(name)


def test_a_shipped_file_that_changed_is_refused(tmp_path, monkeypatch):
    shutil.copytree(pretrained.path("scenes"), tmp_path / "scenes")
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    assert pretrained.path("scenes") == tmp_path / "scenes"
    weights = tmp_path / "scenes" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not the file that was shipped"):
        pretrained.path("scenes")
