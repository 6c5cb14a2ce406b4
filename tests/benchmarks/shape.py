"""A random LLaVA of a chosen shape, and one prompt for it: what the benchmarks of the engine run on."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

from mmlens.inputs import Inputs
from mmlens.metrics import answer_ids
from mmlens.model import HookedVLM

ANSWER = 7
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model and of its prompt: system tokens, an image of ``grid`` × ``grid`` tokens, the suffix."""

    n_layers: int = 12
    n_heads: int = 8
    d_model: int = 512
    d_mlp: int = 1376
    d_vocab: int = 4096
    n_system: int = 16
    grid: int = 24
    n_suffix: int = 32

    @property
    def n_image(self) -> int:
        return self.grid**2

    @property
    def n_pos(self) -> int:
        return self.n_system + self.n_image + self.n_suffix

    @property
    def image_id(self) -> int:
        return self.d_vocab - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """One model twice (Hugging Face's and ours, sharing their weights) and one prompt, its image encoded."""

    shape: Shape
    hf: Llava
    model: HookedVLM
    inputs: Inputs
    embeds: torch.Tensor  # [1, pos, d_model], what the decoder reads

    @property
    def answer(self) -> int:
        return int(answer_ids(self.inputs)[0])

    def masks(self, n: int, keep: float = 0.5) -> torch.Tensor:
        """Head masks, every head kept with probability ``keep``: Bool[mask, layer, head]."""
        generator = torch.Generator().manual_seed(SEED)
        return torch.rand(n, self.shape.n_layers, self.shape.n_heads, generator=generator) < keep

    def decoder(self, attn_implementation: str = "eager") -> LlamaForCausalLM:
        """A copy of the decoder as a language model of its own, for tools that change what they are given."""
        text: Any = self.hf.config.text_config
        config = LlamaConfig(**text.to_dict())
        config.architectures = ["LlamaForCausalLM"]
        decoder = LlamaForCausalLM._from_config(config, attn_implementation=attn_implementation)
        decoder.model.load_state_dict(self.hf.model.language_model.state_dict())
        decoder.lm_head.load_state_dict(self.hf.lm_head.state_dict())
        return decoder.eval().requires_grad_(False)


def config_of(shape: Shape) -> LlavaConfig:
    text = LlamaConfig(
        vocab_size=shape.d_vocab,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_heads,
        max_position_embeddings=4096,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=shape.grid,
        patch_size=1,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=shape.image_id)


def build(shape: Shape) -> Bench:
    """The model with the random weights that Hugging Face gives it, and a prompt of random words and pixels."""
    torch.manual_seed(SEED)
    hf = Llava._from_config(config_of(shape), attn_implementation="eager", dtype=torch.float32)
    hf = hf.eval().requires_grad_(False)
    model = HookedVLM.from_hf(hf)
    words = torch.randint(3, shape.image_id, (1, shape.n_system + shape.n_suffix))
    image = torch.full((1, shape.n_image), shape.image_id)
    ids = torch.cat([words[:, : shape.n_system], image, words[:, shape.n_system :]], dim=1)
    pixels = torch.randn(1, 3, shape.grid, shape.grid)
    inputs = model.prepare({"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels})
    inputs = replace(model.encode_images(inputs), answer_ids=torch.tensor([ANSWER]))
    with torch.no_grad():
        embeds = model.embed_inputs(inputs)
    return Bench(shape=shape, hf=hf, model=model, inputs=inputs, embeds=embeds)
