import pytest
import torch

from mmlens.errors import CheckpointError, ConfigError
from mmlens.pretrained.checkpoints import (
    CHECKPOINT,
    append_curve,
    read_checkpoint,
    read_curve,
    trim_curve,
    write_checkpoint,
)


def test_what_was_written_is_read(tmp_path):
    assert read_checkpoint(tmp_path, settings={}) is None
    write_checkpoint(tmp_path, {"settings": {"seed": 1}, "step": 3, "model": {"w": torch.ones(2)}})
    state = read_checkpoint(tmp_path, settings={"seed": 1})
    assert state["step"] == 3 and torch.equal(state["model"]["w"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path):
    write_checkpoint(tmp_path, {"settings": {}, "step": 3})
    with pytest.raises((AttributeError, TypeError)):
        write_checkpoint(tmp_path, {"settings": {}, "step": 4, "bad": (i for i in range(3))})
    assert read_checkpoint(tmp_path, settings={})["step"] == 3


def test_other_settings_are_refused_by_name(tmp_path):
    write_checkpoint(tmp_path, {"settings": {"seed": 1, "batch": 4}})
    with pytest.raises(ConfigError, match="seed: 1 before, 2 now"):
        read_checkpoint(tmp_path, settings={"seed": 2, "batch": 4})


def test_a_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(tmp_path, settings={})


def test_the_curve_is_cut_back_to_the_checkpoint(tmp_path):
    assert read_curve(tmp_path) == []
    for step in (1, 2, 3):
        append_curve(tmp_path, {"step": step})
    trim_curve(tmp_path, 2)
    assert [point["step"] for point in read_curve(tmp_path)] == [1, 2]
