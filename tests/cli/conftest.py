"""The command line, called through its entry point in this process; a tiny checkpoint and pictures for it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Done:
    """What a command printed and returned."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def mmlens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``mmlens`` with the given arguments, in this process."""

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["mmlens", *arguments])
        from mmlens.cli import main

        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return Done(returncode=int(stopped.value.code or 0), stdout=printed.out, stderr=printed.err)

    return run


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint as transformers saves it."""
    from tests.tiny import tiny_llava, tiny_processor

    path = tmp_path_factory.mktemp("tiny-llava")
    tiny_llava(seed=1, n_kv=2).save_pretrained(path)
    tiny_processor().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four pictures on disk."""
    from tests.tiny import tiny_image

    path = tmp_path_factory.mktemp("images")
    for i in range(4):
        tiny_image(i).save(path / f"{i}.png")
    return sorted(path.iterdir())
