"""The code has the shape that CONTRIBUTING.md describes, and the rules that say so still bite.

Every module of mmlens is held against the rules of ``architecture.py``; so are planted sources that break
exactly one of them, so that a rule that stopped finding anything fails here too.
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.architecture import BANNED_FILES, LEVELS, ONLY, PACKAGE, ROOT, violations

MODULES = sorted(PACKAGE.rglob("*.py"))

# --- mmlens as it stands


@pytest.mark.parametrize("path", MODULES, ids=[str(p.relative_to(PACKAGE)) for p in MODULES])
def test_module_keeps_the_rules(path: Path) -> None:
    assert violations(path, path.read_text(encoding="utf-8")) == []


def test_every_room_has_a_level() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}
    assert rooms <= LEVELS.keys() | ONLY.keys()


def test_no_file_for_leftovers() -> None:
    assert [p for p in PACKAGE.rglob("*") if p.stem in BANNED_FILES] == []


def test_no_path_of_a_machine_in_any_file() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {hit}" for path in text_files() for hit in machine_paths(path.read_text())
    ]
    assert found == []


def text_files() -> list[Path]:
    """What git tracks or would track, as far as it is text."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split(
            "\0"
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in names if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:8192]]


def machine_paths(text: str) -> list[str]:
    """Absolute paths into somebody's home or checkout."""
    homes = "home", "root", "Users", "work", "mnt", "workspace", "builds"
    return re.findall(rf"(?<![\w.\-~:/<>*])/(?:{'|'.join(homes)})/[\w.\-]+", text)


# --- planted violations

DOC = '"""Docstring."""\n'

PLANTED = {
    "upward": ("inputs/prepare.py", "from mmlens.model import HookedVLM", "inputs must not import model"),
    "upward, relative": (
        "inputs/prepare.py",
        "from ..model import HookedVLM",
        "inputs must not import model",
    ),
    "upward, in a function": (
        "inputs/x.py",
        "def f():\n    import mmlens.engine",
        "inputs must not import engine",
    ),
    "upward, for types": (
        "inputs/x.py",
        "if TYPE_CHECKING:\n    from mmlens.model import HookedVLM",
        "inputs must not import model",
    ),
    "upward, as a submodule": ("inputs/x.py", "from mmlens import model", "inputs must not import model"),
    "sideways": ("loading/x.py", "from mmlens.inputs import Prompt", "loading must not import inputs"),
    "sideways, against the exception": (
        "inputs/x.py",
        "from mmlens.interventions import Zero",
        "inputs must not import interventions",
    ),
    "through the public surface": ("engine/x.py", "from mmlens import HookedVLM", "which is no room"),
    "plots of a model": ("plots/x.py", "from mmlens.model import HookedVLM", "plots must not import model"),
    "plots in a low room": (
        "engine/x.py",
        "from mmlens.plots import heatmap",
        "engine must not import plots",
    ),
    "result draws itself": (
        "result/x.py",
        "def f():\n    from mmlens.plots import heatmap",
        "result must not import plots",
    ),
    "pretrained not alone": (
        "pretrained/x.py",
        "from mmlens.model import x",
        "pretrained must not import model",
    ),
    "pretrained from below": (
        "inputs/x.py",
        "from mmlens.pretrained import x",
        "inputs must not import pretrained",
    ),
    "pretrained in the model": (
        "model/run.py",
        "from mmlens.pretrained import x",
        "model must not import pretrained",
    ),
    "transformer_lens astray": (
        "engine/x.py",
        "import transformer_lens.hook_points",
        "transformer_lens is imported only",
    ),
    "nnsight astray": ("model/x.py", "from nnsight import save", "nnsight is imported only"),
    "transformers in the model": ("model/layer.py", "import transformers", "transformers is imported only"),
    "plotly astray": ("result.py", "def f():\n    import plotly.express", "plotly is imported only"),
    "ray astray": ("analyses/x.py", "import ray", "ray is imported only"),
    "torch in plots": ("plots/x.py", "def f():\n    import torch", "works without torch"),
    "torch in result": ("result.py", "from torch import Tensor", "works without torch"),
    "heavy command line": ("cli.py", "import pandas", "cli stays light"),
    "heavy surface": ("__init__.py", "import torch", "__init__ stays light"),
    "long file": ("engine/x.py", "A = 1\n" * 399, "401 lines"),
    "long function": ("engine/x.py", "def f():\n" + "    a = 1\n" * 50, "f has 51 lines"),
    "long function, described": (
        "engine/x.py",
        'def f():\n    """First.\n\n    Last.\n    """\n' + "    a = 1\n" * 50,
        "f has 51 lines",
    ),
    "long method": ("engine/x.py", "class A:\n    def f(self):\n" + "        a = 1\n" * 50, "f has 51 lines"),
    "call": ("engine/x.py", "TABLE = load_table()", "call of load_table"),
    "call in a container": ("engine/x.py", "TABLE = {'a': [open('x')]}", "call of open"),
    "call in a keyword": ("engine/x.py", "TABLE = Table(rows=read())", "call of read"),
    "tensor": ("engine/x.py", "ONES = torch.Tensor(3)", "call of torch.Tensor"),
    "call in a comprehension": ("engine/x.py", "A = [f(i) for i in RANGE]", "call of f"),
    "comprehension of a call": ("engine/x.py", "A = [i for i in f()]", "call of f"),
    "statement": ("engine/x.py", "register('llava')", "Expr in module"),
    "loop": ("engine/x.py", "for i in RANGE:\n    pass", "For in module"),
    "try": ("engine/x.py", "try:\n    import ray_\nexcept ImportError:\n    pass", "Try in module"),
    "condition": ("engine/x.py", "if DEBUG:\n    import pdb", "a condition at import time"),
    "work for types": ("engine/x.py", "if TYPE_CHECKING:\n    A = f()", "call of f in TYPE_CHECKING block"),
    "call in a class": ("engine/x.py", "class A:\n    table = load_table()", "call of load_table in class A"),
    "call of a busy function": (
        "engine/x.py",
        "def _load(x):\n    return open(x)\nTABLE = _load('x')",
        "call of _load in module",
    ),
    "print": ("engine/x.py", "def f():\n    print('x')", "print()"),
    "bare except": (
        "engine/x.py",
        "def f():\n    try:\n        g()\n    except:\n        raise",
        "bare except",
    ),
    "global": ("engine/x.py", "def f():\n    global A\n    A = 1", "global A"),
    "global seed": ("engine/x.py", "def f():\n    torch.manual_seed(0)", "seeds global state"),
    "swallowed keywords": ("engine/x.py", "def f(x, **kwargs):\n    return x", "f swallows **kwargs"),
}


@pytest.mark.parametrize(("name", "body", "expected"), PLANTED.values(), ids=PLANTED)
def test_planted_violation_is_found(name: str, body: str, expected: str) -> None:
    found = violations(PACKAGE / name, DOC + body + "\n")
    assert len(found) == 1
    assert expected in found[0]


def test_missing_docstring_is_found() -> None:
    assert violations(PACKAGE / "engine/x.py", "A = 1\n") == ["no module docstring"]


ALLOWED = {
    "downward": ("engine/x.py", "from mmlens.model.layer import Layer\nfrom mmlens.inputs import Inputs"),
    "own room": ("inputs/x.py", "from mmlens.inputs.prompt import Prompt\nfrom .regions import Box"),
    "version": ("result.py", "from mmlens import __version__"),
    "room as a name": ("engine/x.py", "from mmlens import errors"),
    "interventions read inputs": ("interventions/x.py", "from mmlens.inputs import Inputs"),
    "report shows plots": ("report/x.py", "from mmlens.plots import heatmap"),
    "model by name": ("model/hooked_vlm.py", "from mmlens.pretrained import find"),
    "hooks in the model": ("model/layer.py", "from transformer_lens.hook_points import HookPoint"),
    "vision parts": ("model/vision/x.py", "import transformers"),
    "command line on demand": ("cli.py", "import typer\ndef f():\n    import torch\n    return torch"),
    "constants": (
        "engine/x.py",
        "A: int = 1\nB = {'a': (1, -2)}\nC = re.compile('x')\nD = frozenset({'a'})\nE = Table(rows=(1,))\n"
        "F = Float[Tensor, 'batch pos'] | None\nG = TypeVar('G')\nH = lambda x: g(x)\n"
        "I = [i * i for i in range(3)]",
    ),
    "table with a shorthand": (
        "engine/x.py",
        'def _row(x):\n    """One row."""\n    return Row(x=x)\nTABLE = {\'a\': _row(1)}',
    ),
    "dataclass": (
        "engine/x.py",
        "@dataclass(frozen=True)\nclass A:\n    a: int\n    b: dict = field(default_factory=dict)",
    ),
    "types": ("engine/x.py", "if TYPE_CHECKING:\n    from mmlens.inputs import Inputs"),
    "seed that is undone": (
        "engine/x.py",
        "def f():\n    with torch.random.fork_rng(devices=[]):\n        torch.manual_seed(0)",
    ),
    "used keywords": ("engine/x.py", "def f(**kwargs):\n    return g(**kwargs)"),
    "stub": ("engine/x.py", "class A(Protocol):\n    def f(self, **kwargs): ..."),
    "limits": ("engine/x.py", "def f():\n" + "    a = 1\n" * 49),
    "long docstring": (
        "engine/x.py",
        'def f():\n    """First.\n' + "\n" * 60 + '    """\n' + "    a = 1\n" * 49,
    ),
    "script": ("engine/x.py", "if __name__ == '__main__':\n    main()"),
}


@pytest.mark.parametrize(("name", "body"), ALLOWED.values(), ids=ALLOWED)
def test_good_code_passes(name: str, body: str) -> None:
    assert violations(PACKAGE / name, DOC + body + "\n") == []


def test_machine_paths_are_found_and_others_are_not() -> None:
    slash = "/"
    bad = f'open("{slash}home/ann/x.png") and {slash}root/.cache'
    assert machine_paths(bad) == [f"{slash}home/ann", f"{slash}root/.cache"]
    assert machine_paths("https://example.org/home/x ~/home/x src/home/x /usr/bin/chromium") == []
