"""The rules on the shape of the code: who imports whom, how big things are, and that importing does no work.

``violations`` reads the source of one module with ``ast`` and lists what it breaks; ``test_architecture.py``
holds mmlens against it.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mmlens"

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50

# A room is a file or folder directly under mmlens/. It may import rooms of a lower level, and itself.
LEVELS = {
    "errors": 1, "axes": 1,
    "config": 2, "result": 2,
    "inputs": 3, "interventions": 3, "loading": 3,
    "metrics": 4, "model": 4,
    "reference": 5, "engine": 5,
    "sweeps": 6,
    "analyses": 7, "datasets": 7,
    "cli": 8, "recipes": 8, "__main__": 8,
}  # fmt: skip
# Rooms off the ladder: they may import these rooms only.
ONLY = {
    "plots": {"errors", "axes", "config", "result"},
    "report": {"errors", "axes", "config", "result", "plots"},
    "pretrained": {"errors", "axes", "config", "datasets"},
}
# Rooms off the ladder: they may be imported by rooms of this level or above.
FROM_LEVEL = {"plots": 7, "report": 7, "pretrained": 8}
# (importing module or folder, imported room): what the two rules above would forbid.
EXCEPTIONS = {
    ("interventions", "inputs"),  # edits name positions with the selectors of inputs
    ("loading", "pretrained"),  # "scenes" is a checkpoint like any other, found by name
    ("model.hooked_vlm", "pretrained"),
    ("cli", "recipes"),  # the commands that run an experiment end to end
}

# Third-party packages with a home: only these modules or folders may import them.
HOMES = {
    "transformer_lens": ("model", "interventions"),
    "nnsight": ("reference",),
    "transformers": ("config", "inputs", "loading", "reference", "pretrained", "model.vision"),
    "plotly": ("plots", "report"),
    "ray": ("sweeps",),
}
# Results load and draw without torch.
TORCH_FREE = ("errors", "axes", "result", "plots", "report")
# What `import mmlens` and `mmlens --help` read: no heavy import outside a function.
LIGHT = ("__init__", "__main__", "errors", "axes", "cli")
HEAVY = {
    "torch", "transformers", "transformer_lens", "nnsight", "plotly", "pandas", "xarray", "numpy", "scipy",
    "sklearn", "pyarrow", "PIL", "pydantic", "safetensors", "einops", "jaxtyping", "jinja2",
}  # fmt: skip

BANNED_FILES = {"utils", "util", "helpers", "helper"}
# Functions that only build a value. Constructors (CapWords) may be called, torch's and numpy's excepted.
IMPORT_TIME_CALLS = {
    "frozenset", "set", "dict", "tuple", "list", "str", "len", "range", "zip", "enumerate", "sorted", "min",
    "max", "sum", "slice", "object", "field", "dataclasses.field", "re.compile", "logging.getLogger",
}  # fmt: skip
GLOBAL_SEEDS = {"torch.manual_seed", "torch.seed", "np.random.seed", "numpy.random.seed", "random.seed"}


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported module, by dotted name, and whether it is imported inside a function."""

    line: int
    module: str
    in_function: bool


# --- reading the source


def dotted(path: Path) -> str:
    """``mmlens/model/vision/tower.py`` → ``model.vision.tower``; a package is named by its folder."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


def lies_in(module: str, home: str) -> bool:
    return module == home or module.startswith(home + ".")


def imports_of(module: str, tree: ast.Module, is_package: bool) -> Iterator[Import]:
    """Every import, at any depth, relative ones resolved. ``from mmlens import x`` is one of ``mmlens.x``."""
    inside = {id(node) for function in functions_of(tree) for node in ast.walk(function)}
    package = ["mmlens", *module.split(".")][: None if is_package else -1]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            names = (
                [".".join([*base, a.name]) for a in node.names] if base == ["mmlens"] else [".".join(base)]
            )
        for name in names:
            yield Import(line=node.lineno, module=name, in_function=id(node) in inside)


def functions_of(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def callee(node: ast.Call) -> str:
    """The dotted name of what is called, as it is written."""
    return ast.unparse(node.func)


# --- the rules


def layer_violations(module: str, imports: list[Import]) -> Iterator[str]:
    room = module.split(".")[0]
    if room == "__init__":
        return  # the lazy surface; test_imports.py holds it to its promises
    for found in imports:
        if not found.module.startswith("mmlens."):
            continue
        target = found.module.split(".")[1]
        if target == "__version__" or target == room:
            continue
        if target not in LEVELS and target not in ONLY:
            yield f"line {found.line}: imports {target!r}, which is no room; import it from its own module"
        elif not may_import(module, target):
            yield f"line {found.line}: {room} must not import {target}"


def may_import(module: str, target: str) -> bool:
    room = module.split(".")[0]
    if any(lies_in(module, source) and target == other for source, other in EXCEPTIONS):
        return True
    if room in ONLY:
        return target in ONLY[room]
    if target in ONLY:
        return LEVELS[room] >= FROM_LEVEL[target]
    return LEVELS[target] < LEVELS[room]


def home_violations(module: str, imports: list[Import]) -> Iterator[str]:
    for found in imports:
        package = found.module.split(".")[0]
        homes = HOMES.get(package)
        if homes and not any(lies_in(module, home) for home in homes):
            yield f"line {found.line}: {package} is imported only in {', '.join(homes)}"
        if package == "torch" and any(lies_in(module, home) for home in TORCH_FREE):
            yield f"line {found.line}: {module} works without torch"
        light = any(lies_in(module, one) for one in LIGHT)
        if package in HEAVY and light and not found.in_function:
            yield f"line {found.line}: {module} stays light: import {package} where it is used"


def size_violations(source: str, tree: ast.Module) -> Iterator[str]:
    if (n_lines := len(source.splitlines())) > MAX_FILE_LINES:
        yield f"{n_lines} lines; at most {MAX_FILE_LINES}"
    for function in functions_of(tree):
        if (n_lines := lines_of(function)) > MAX_FUNCTION_LINES:
            yield f"line {function.lineno}: {function.name} has {n_lines} lines; at most {MAX_FUNCTION_LINES}"


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, signature included, docstring not: a limit must not reward saying less."""
    docstring = function.body[0] if ast.get_docstring(function) else None
    n_lines = (function.end_lineno or 0) - function.lineno + 1
    return n_lines - ((docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0)


def import_time_violations(tree: ast.Module) -> Iterator[str]:
    free = frozenset(value_builders(tree))
    yield from work_in(tree.body, "module", free)
    for node in tree.body:
        if isinstance(node, ast.If) and is_type_checking(node.test):
            yield from work_in(node.body + node.orelse, "TYPE_CHECKING block", free)
        elif isinstance(node, ast.If) and ast.unparse(node.test) != "__name__ == '__main__'":
            yield f"line {node.lineno}: a condition at import time"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from work_in(node.body, f"class {node.name}", free)


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def value_builders(tree: ast.Module) -> Iterator[str]:
    """The module's own functions that only return a value they build: shorthands for the rows of a table."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if (
                len(body) == 1
                and isinstance(body[0], ast.Return)
                and not list(work_of(body[0].value, frozenset()))
            ):
                yield node.name


def work_in(body: list[ast.stmt], place: str, free: frozenset[str]) -> Iterator[str]:
    """Statements that do something when the module is imported; functions in ``free`` may be called."""
    harmless = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Pass)
    for node in body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, harmless) or docstring or (isinstance(node, ast.If) and place == "module"):
            continue
        found = [type(node).__name__]
        if isinstance(node, ast.Assign | ast.AnnAssign):
            found = list(work_of(node.value, free))
        yield from (f"line {node.lineno}: {what} in {place} at import time" for what in found)


def work_of(value: ast.expr | None, free: frozenset[str]) -> Iterator[str]:
    """Calls in a value, except those that only build it and those that a lambda puts off."""
    if value is None or isinstance(value, ast.Lambda):
        return
    if isinstance(value, ast.Call) and not builds_a_value(value) and callee(value) not in free:
        yield f"call of {callee(value)}"
    for child in ast.iter_child_nodes(value):
        if isinstance(child, ast.comprehension):
            yield from work_of(child.iter, free)
        elif isinstance(child, ast.keyword):
            yield from work_of(child.value, free)
        elif isinstance(child, ast.expr):
            yield from work_of(child, free)


def builds_a_value(node: ast.Call) -> bool:
    name = callee(node)
    root, last = name.split(".")[0], name.split(".")[-1]
    constructor = last.lstrip("_")[:1].isupper() and root not in ("torch", "np", "numpy", "transformers")
    return name in IMPORT_TIME_CALLS or constructor


def style_violations(tree: ast.Module) -> Iterator[str]:
    if ast.get_docstring(tree) is None:
        yield "no module docstring"
    restored = {id(node) for block in forks_of_random_state(tree) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and callee(node) == "print":
            yield f"line {node.lineno}: print()"
        if isinstance(node, ast.Call) and callee(node) in GLOBAL_SEEDS and id(node) not in restored:
            yield f"line {node.lineno}: {callee(node)}() seeds global state; use a generator"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: bare except"
        if isinstance(node, ast.Global):
            yield f"line {node.lineno}: global {', '.join(node.names)}"
    for function in functions_of(tree):
        if function.args.kwarg and not is_stub(function) and not reads(function, function.args.kwarg.arg):
            yield f"line {function.lineno}: {function.name} swallows **{function.args.kwarg.arg}"


def forks_of_random_state(tree: ast.Module) -> Iterator[ast.With]:
    """``with torch.random.fork_rng()``: what is seeded in there is as it was afterwards."""
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and any("fork_rng(" in ast.unparse(item) for item in node.items):
            yield node


def is_stub(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Nothing but a docstring or ``...``: a protocol, an overload, an abstract method."""
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in function.body)


def reads(function: ast.AST, name: str) -> bool:
    return any(
        isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load) for n in ast.walk(function)
    )


def violations(path: Path, source: str) -> list[str]:
    """Everything that ``source``, lying at ``path`` under mmlens/, breaks."""
    module, tree = dotted(path), ast.parse(source)
    imports = list(imports_of(module, tree, path.name == "__init__.py"))
    return [
        *layer_violations(module, imports),
        *home_violations(module, imports),
        *size_violations(source, tree),
        *import_time_violations(tree),
        *style_violations(tree),
    ]
