"""The public surface is complete and lazy: importing mmlens, or asking for help, loads nothing heavy."""

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import mmlens
from tests.architecture import HEAVY, PACKAGE

# What must not be loaded. Typer itself looks into pydantic, when that is installed, to describe an argument.
TOO_HEAVY = (HEAVY - {"pydantic"}) | {"datasets", "matplotlib", "IPython", "wandb", "ray", "tqdm"}


def modules_after(code: str) -> set[str]:
    """Top-level names of everything that a fresh interpreter has loaded after ``code``."""
    listing = (
        "import json, sys; print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{listing}"], capture_output=True, text=True, check=True
    )
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_import_is_light() -> None:
    loaded = modules_after("import mmlens; mmlens.__version__; dir(mmlens)")
    assert "mmlens" in loaded
    assert loaded & TOO_HEAVY == set()


@pytest.mark.parametrize("arguments", [["--help"], ["attribute", "--help"]], ids=" ".join)
def test_help_is_light(arguments: list[str]) -> None:
    call = f"import sys; sys.argv = ['mmlens', *{arguments!r}]\nfrom mmlens.cli import main\n"
    loaded = modules_after(
        call + "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )
    assert "typer" in loaded
    assert loaded & TOO_HEAVY == set()


def test_first_use_is_what_imports() -> None:
    assert "torch" in modules_after("import mmlens; mmlens.HookedVLM")


@pytest.mark.parametrize("name", sorted(mmlens._HOME))
def test_public_name_resolves(name: str) -> None:
    assert getattr(mmlens, name) is getattr(import_module(f"mmlens.{mmlens._HOME[name]}"), name)


@pytest.mark.parametrize("room", mmlens._ROOMS)
def test_room_resolves(room: str) -> None:
    assert getattr(mmlens, room) is import_module(f"mmlens.{room}")


def test_rooms_are_those_on_disk() -> None:
    on_disk = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert set(mmlens._ROOMS) == on_disk - {"__init__", "__main__", "cli"}


def test_type_checkers_see_what_users_see() -> None:
    """The imports under TYPE_CHECKING, ``__all__`` and the table name the same things in the same rooms."""
    tree = ast.parse(Path(mmlens.__file__).read_text())
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "mmlens." in str(node.module)
    ]
    seen = {
        alias.asname: str(node.module).removeprefix("mmlens.") for node in imports for alias in node.names
    }
    assert seen == mmlens._HOME
    assert set(mmlens.__all__) == {*seen, "__version__"}
    assert set(mmlens.__all__) <= set(dir(mmlens))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'mmlens' has no attribute 'HookedVML'"):
        _ = mmlens.HookedVML


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_room_exports_what_it_lists(path: Path) -> None:
    room = import_module(f"mmlens.{path.parent.name}")
    missing = [name for name in getattr(room, "__all__", ()) if not hasattr(room, name)]
    assert missing == []
