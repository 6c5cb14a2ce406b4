import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmlens.engine import compiling
from mmlens.engine.compiling import compiled
from mmlens.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import torch
from torch._dynamo.utils import counters
from mmlens.engine import PrefixRuns
from mmlens.engine.masked_runs import masked_layer
from mmlens.metrics import as_metric
from tests.engine.build import random_masks, tiny_model, tiny_sample

model = tiny_model(n_kv=2)
inputs = tiny_sample(model)
seen = []
for baseline in ("knockout", "mean_image_tokens", "mean_image_tokens"):
    options = {"metric": as_metric("logit"), "baseline": baseline, "batch_size": 8}
    masks = random_masks(16)
    plain = PrefixRuns(model, inputs, **options)(masks)
    fast = PrefixRuns(model, inputs, **options, compile=True)
    assert hasattr(fast._step, "_torchdynamo_orig_callable")
    fast._step = torch.compile(masked_layer, backend="aot_eager")
    fast = fast(masks)
    assert float(plain.std()) > 0.01
    assert float((plain - fast).abs().max()) <= 1e-5, (plain, fast)
    seen.append(counters["stats"]["unique_graphs"])
assert 3 <= seen[0] < seen[1] == seen[2], seen  # what is compiled serves other prompts
breaks = list(counters["graph_break"])
assert breaks and all("read_by_open_heads" in what for what in breaks), breaks
print("graphs", counters["stats"]["unique_graphs"])
"""


def test_compiled_layers_give_the_same_and_are_cut_where_the_image_is_read() -> None:
    """The graphs without Inductor, whose C++ takes minutes to build.

    In a process of its own: graphs cannot look into the run-time type checks that tests switch on.
    """
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("graphs")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"):
        compiled(torch.relu, torch.device("cpu"))
