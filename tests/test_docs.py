"""What the documentation states can be checked: hook names with their shapes, and code that runs."""

import re
from itertools import chain
from pathlib import Path

import pytest

from tests.architecture import ROOT

HOOK_ROW = re.compile(r"^\| `([\w.{}]+)` \| `\[([\w, ]+)\]` \|", re.MULTILINE)
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

PAGES = [
    f"docs/{path.name}"
    for path in sorted(ROOT.glob("docs/*.md"))
    if "```python" in path.read_text(encoding="utf-8")
]


def code_blocks(page: str) -> list[str]:
    return PYTHON_BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def documented_hooks() -> dict[str, list[str]]:
    rows = HOOK_ROW.findall((ROOT / "docs/hooks.md").read_text(encoding="utf-8"))
    return {name: axes.split(", ") for name, axes in rows}


def expanded(name: str, n_layers: int, n_vision_layers: int) -> list[str]:
    n = n_vision_layers if name.startswith("vision.") else n_layers
    return [name.replace("{l}", str(layer)) for layer in range(n)] if "{l}" in name else [name]


def test_hook_reference_names_every_hook_point_with_its_shape() -> None:
    from mmlens.model import HookedVLM
    from tests.tiny import tiny_batch, tiny_llava, tiny_processor

    model = HookedVLM.from_hf(tiny_llava(), tiny_processor())
    batch = tiny_batch(["what colour is this object ?", "what is this ?"], images_per_prompt=2)
    inputs = model.prepare(batch)
    _, cache = model.run_with_cache(inputs, names_filter=lambda name: True)

    cfg, vision = model.cfg, model.cfg.vision
    n_images, n_cells = len(inputs.pixel_values), (vision.image_size // vision.patch_size) ** 2
    sizes = {
        "batch": 2, "pos": inputs.n_pos, "query": inputs.n_pos, "key": inputs.n_pos,
        "head": cfg.n_heads, "kv_head": cfg.n_key_value_heads, "d_head": cfg.d_head,
        "d_model": cfg.d_model, "d_mlp": cfg.d_mlp, "1": 1,
        "image": n_images, "cell": n_cells, "place": n_cells + 1, "image_token": n_images * n_cells,
        "vision_head": vision.n_heads, "d_vision_head": vision.d_head, "d_vision": vision.d_model,
        "d_vision_mlp": vision.d_mlp, "d_features": vision.d_model * len(vision.feature_layers),
    }  # fmt: skip
    documented = documented_hooks()
    names = [expanded(name, cfg.n_layers, len(model.vision.blocks)) for name in documented]
    assert sorted(chain.from_iterable(names)) == sorted(model.hook_dict)
    stated = {
        name: tuple(sizes[axis] for axis in axes)
        for template, axes in documented.items()
        for name in expanded(template, cfg.n_layers, len(model.vision.blocks))
    }
    assert {name: tuple(tensor.shape) for name, tensor in cache.items()} == stated


def run_page(page: str, names: dict[str, object]) -> None:
    for code in code_blocks(page):
        exec(compile(code, page, "exec"), names)


def test_readme_runs(workdir: Path) -> None:
    run_page("README.md", {})
    assert (workdir / "heads.html").stat().st_size > 0
    assert (workdir / "heads.mmlens").stat().st_size > 0


@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page: str, workdir: Path) -> None:
    """The page's Python blocks run one after the other, following on from the README's example."""
    names: dict[str, object] = {}
    run_page("README.md", names)
    run_page(page, names)
