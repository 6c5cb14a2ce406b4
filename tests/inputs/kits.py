"""Real LLaVA processors over three kinds of tokenizer, built offline, and the model shapes that fit them."""

from dataclasses import MISSING

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mmlens.config import ModelConfig

SIDE, CELL = 28, 7
GRID = SIDE // CELL

SENTENCES = [
    "What is the main object in the picture?",
    "What colour is the square? How many circles are there?",
    "Is there a red triangle? yes no red blue green square circle triangle one two three",
    "You are a helpful assistant. Answer with a single word.",
    "USER: ASSISTANT: USER : ASSISTANT :",
] * 8

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def word_tokenizer():
    """One token a word; ':' stands alone; no token for spaces."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    trainer = trainers.WordLevelTrainer(
        special_tokens=["<unk>", "<pad>", "<s>", "</s>", "<image>"], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<image>"],
    )


def metaspace_tokenizer():
    """SentencePiece-like: '▁red' after a space, bytes for unknown characters, a start token in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([text for text in SENTENCES if "USER" not in text], trainer)
    tokenizer.add_special_tokens([AddedToken("<image>", normalized=False)])
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=["<image>"],
    )


def bytelevel_tokenizer():
    """Byte-level byte-pair encoding with ChatML tags: the answer follows a newline, without a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*SENTENCES, "red\n", "blue\n", "red blue"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", "<image>"],
    )


def build(tokenizer, chat_template=None, **image_settings):
    settings = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(**{**settings, **image_settings}),
        tokenizer=tokenizer,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )


def shape_of(processor, **settings):
    """Configuration of a LLaVA that fits a processor."""
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=CELL,
    )
    text = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(processor.tokenizer),
        bos_token_id=processor.tokenizer.bos_token_id,
    )
    hf = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=processor.image_token_id, **settings
    )
    return ModelConfig.from_hf(hf)


def picture(width=40, height=30, seed=0):
    """Random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def unchecked(kind, **fields):
    """A dataclass made without the tests' type checks, as users make it: its own checks must hold."""
    made = object.__new__(kind)
    for name, field in kind.__dataclass_fields__.items():
        default = field.default if field.default is not MISSING else None
        value = field.default_factory() if field.default_factory is not MISSING else default
        object.__setattr__(made, name, fields.get(name, value))
    made.__post_init__()
    return made
