"""The entry point: help, version, and errors that are one line and leave nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import HEAVY
from tests.cli.conftest import Command

COMMANDS = ("demo", "attribute", "patch", "heads", "lens", "flow", "sweep", "collect", "info", "verify")


def test_help_lists_the_commands_in_a_fresh_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmlens.cli", "--help"], capture_output=True, text=True, check=True
    )
    for command in COMMANDS:
        assert f" {command} " in done.stdout


ASKED_FOR_HELP = """
import sys
from mmlens.cli import main

for command in sys.argv[1:]:
    sys.argv = ["mmlens", command, "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (command, end.code)
print("loaded:", *sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_help_of_every_command_loads_nothing_heavy() -> None:
    command = [sys.executable, "-c", ASKED_FOR_HELP, *COMMANDS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("loaded:")[2].split())
    assert "typer" in loaded and not loaded & ({*HEAVY, "tqdm", "ray"} - {"pydantic"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "/nowhere/at/all"], "CheckpointError"),
        (["info", "{folder}", "--image-size", "640"], "WIDTHxHEIGHT"),
        (["info", "{folder}", "--tokens", "5"], "cannot hold 1 image"),
        (["attribute", "missing.png", "--question", "what ?", "--model", "{folder}"], "ImageError"),
        (
            ["attribute", "{image}", "--question", "what ?", "--model", "{folder}", "--answer", "zebra"],
            "AnswerError",
        ),
        (
            ["attribute", "{image}", "--question", "what ?", "--model", "{folder}", "--foil", "red"],
            "--foil needs",
        ),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    mmlens: Command, arguments: list[str], message: str, folder: Path, images: list[Path], workdir: Path
) -> None:
    filled = [argument.format(folder=folder, image=images[0]) for argument in arguments]
    done = mmlens(*filled)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(workdir.iterdir()) == []


def test_version(mmlens: Command) -> None:
    import mmlens as package

    assert mmlens("--version").stdout.strip() == package.__version__


def test_an_unknown_option_exits_with_2(mmlens: Command) -> None:
    assert mmlens("demo", "--nonsense").returncode == 2
