"""A tiny Hugging Face LLaVA per grouping of heads, its hooked twin, and a left-padded batch."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_batch, tiny_llava, tiny_processor


@dataclass(frozen=True)
class Pair:
    """A Hugging Face model, the hooked model made from it, and inputs for both."""

    hf: Any
    model: Any
    inputs: Any
    batch: dict[str, Tensor]

    @property
    def real(self) -> Tensor:
        """Positions that are not padding."""
        return self.inputs.attention_mask.bool()

    @torch.no_grad()
    def hf_logits(self, **options: Any) -> Tensor:
        """Logits of the unmodified model, positions counted from the first real token as ours are."""
        return self.hf(**self.batch, position_ids=self.inputs.position_ids, **options).logits


def make_pair(n_kv: int = 4, *, images: int = 1, seed: int = 0, **config: Any) -> Pair:
    """Two questions of different length about random images."""
    from mmlens.model import HookedVLM

    hf = tiny_llava(seed=seed, n_kv=n_kv, **config)
    processor = tiny_processor()
    batch = tiny_batch(
        ["what colour is this object ?", "how many ?"], images_per_prompt=images, processor=processor
    )
    model = HookedVLM.from_hf(hf, processor)
    return Pair(hf=hf, model=model, inputs=model.prepare(dict(batch)), batch=dict(batch))


@pytest.fixture(scope="module", params=[4, 2, 1], ids=["kv4", "kv2", "kv1"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Multi-head, grouped and multi-query attention."""
    return make_pair(request.param)


@pytest.fixture(scope="module")
def plain_pair() -> Pair:
    """Multi-head attention only, for what does not depend on grouping."""
    return make_pair(4)


@pytest.fixture(autouse=True)
def no_gradients(request: pytest.FixtureRequest) -> Any:
    """Tests run without autograd unless marked ``gradients``."""
    with torch.set_grad_enabled("gradients" in request.keywords):
        yield
