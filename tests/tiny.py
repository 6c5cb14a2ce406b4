"""Tiny randomised LLaVA models and their processor, built offline, shared by all tests.

Every parameter is randomised, norms and biases included: Hugging Face initialises those to 0 or 1, and a test
on such weights would pass whatever the code did with them. Sizes are small enough for a forward pass in
milliseconds.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BatchFeature,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

IMAGE_SIZE = 20
PATCH_SIZE = 5
N_IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
D_VOCAB = 100
UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
IMAGE_TOKEN_ID, PAD_ID = D_VOCAB - 2, D_VOCAB - 1

_WORDS = (
    "USER ASSISTANT : ? . , ' what which is the colour shape of object image in this a and or left right "
    "big small there red green blue yellow purple orange white black circle square triangle star cross "
    "ring cat dog car yes no one two three four describe compare see picture both these do you it not how "
    "many"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for item in message['content'] if item['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Gives what the chat template of llava-hf/llava-1.5-7b-hf gives."""


def tiny_llava_config(
    n_heads: int = 4,
    n_kv: int = 4,
    *,
    n_layers: int = 3,
    d_model: int = 32,
    d_mlp: int = 48,
    vision_layers: int = 3,
    vision_d_model: int = 24,
    image_size: int = IMAGE_SIZE,
    patch_size: int = PATCH_SIZE,
    tied: bool = False,
    rope: dict[str, Any] | None = None,
    vision_feature_layer: int | list[int] = -2,
    select_strategy: str = "default",
    bias: bool = False,
) -> LlavaConfig:
    """A LLaVA-1.5 configuration of toy size; ``bias`` adds biases to the decoder's attention and MLP."""
    text = LlamaConfig(
        vocab_size=D_VOCAB,
        hidden_size=d_model,
        intermediate_size=d_mlp,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters=rope or {"rope_type": "default", "rope_theta": 10_000.0},
        attention_bias=bias,
        mlp_bias=bias,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        tie_word_embeddings=tied,
    )
    vision = CLIPVisionConfig(
        hidden_size=vision_d_model,
        intermediate_size=40,
        num_hidden_layers=vision_layers,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=patch_size,
        projection_dim=16,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=(image_size // patch_size) ** 2,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy=select_strategy,
        tie_word_embeddings=tied,
    )


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Draws every parameter anew: matrices at 1/sqrt(fan_in), norm scales around 1, biases around 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            is_scale = name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_scale else 0.3 * noise)
        elif "embed" in name and "patch" not in name:
            parameter.copy_(0.5 * noise)
        else:
            parameter.copy_(noise / math.sqrt(parameter[0].numel()))


def tiny_llava(
    seed: int = 0, config: LlavaConfig | None = None, **config_options: Any
) -> LlavaForConditionalGeneration:
    """A randomised tiny LLaVA: eager attention, float32, eval mode.

    Args:
        seed: of the weights; the same seed and configuration give the same model.
        config: an explicit configuration; otherwise ``tiny_llava_config(**config_options)``.
    """
    config = config or tiny_llava_config(**config_options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration._from_config(
            config, attn_implementation="eager", dtype=torch.float32
        )
    randomise(model, seed)
    model.generation_config.pad_token_id = PAD_ID
    return model.eval().requires_grad_(False)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of 100 tokens that pads on the left and starts every text with ``<s>``."""
    words = ["<unk>", "<s>", "</s>", *_WORDS.split()]
    words += [f"w{i}" for i in range(D_VOCAB - 2 - len(words))]
    vocab = {word: i for i, word in enumerate([*words, "<image>", "<pad>"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=["<image>"],
        padding_side="left",
    )


def tiny_processor(image_size: int = IMAGE_SIZE, patch_size: int = PATCH_SIZE) -> LlavaProcessor:
    """A real LlavaProcessor that fits ``tiny_llava_config``; needs no network and no torchvision."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tiny_tokenizer(),
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_image(seed: int = 0, width: int = 40, height: int = 40) -> Image.Image:
    """A random RGB image of large coloured cells (so that resizing keeps its content)."""
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST)


def tiny_batch(
    questions: Sequence[str] = ("what colour is this object ?",),
    *,
    images_per_prompt: int = 1,
    seed: int = 0,
    processor: LlavaProcessor | None = None,
) -> BatchFeature:
    """Questions about random images as a processor's tensors, left-padded to one length.

    Returns:
        BatchFeature with ``input_ids``, ``attention_mask`` ``[batch, pos]`` and ``pixel_values``
        ``[n_images, 3, height, width]``.
    """
    processor = processor or tiny_processor()
    texts = ["USER: " + "<image>\n" * images_per_prompt + question + " ASSISTANT:" for question in questions]
    images = [tiny_image(seed + i) for i in range(images_per_prompt * len(questions))]
    return processor(text=texts, images=images or None, padding=True, return_tensors="pt")
