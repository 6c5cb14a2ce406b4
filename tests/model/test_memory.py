"""Loading copies nothing: the weights stay in the file's mapping."""

from pathlib import Path

import torch

from mmlens.model import HookedVLM
from tests.tiny import tiny_llava, tiny_llava_config


def anonymous_bytes() -> int:
    """Memory of this process that is not backed by a file."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def test_from_pretrained_makes_no_second_copy(tmp_path: Path) -> None:
    config = tiny_llava_config(n_heads=8, n_kv=8, n_layers=4, d_model=768, d_mlp=3072)
    model = tiny_llava(config=config).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20MB")
    del model
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert size > 60 * 2**20 and len(list(tmp_path.glob("*.safetensors"))) > 2
    before = anonymous_bytes()
    loaded = HookedVLM.from_pretrained(str(tmp_path))
    grown = anonymous_bytes() - before
    assert loaded.embed.weight.dtype == torch.bfloat16
    assert grown < 0.25 * size, f"{grown / 2**20:.0f} MiB of {size / 2**20:.0f} MiB were copied"
