"""The word-level vocabulary of the scenes models, as an ordinary fast tokenizer, and their chat template."""

import re

from transformers import PreTrainedTokenizerFast

from mmlens.datasets.scenes import ANSWERS, CLASSES
from mmlens.datasets.scenes.questions import PHRASINGS, TEMPLATES
from mmlens.datasets.scenes.values import GROUPS, PLURALS

PAD, EOS, UNKNOWN, IMAGE = "<pad>", "</s>", "<unk>", "<image>"
PROMPT = "USER: <image>\n{question} ASSISTANT:"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %} ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
"""Gives PROMPT for one user message with an image and a text; adds no beginning-of-sequence token."""


def words() -> list[str]:
    """Every token in a fixed order: specials, the prompt's own words, question words, answers."""
    found = [PAD, EOS, UNKNOWN, IMAGE, "USER", "ASSISTANT", ":"]
    templates = [*TEMPLATES.values(), *PHRASINGS.values()]
    texts = [template.format(name="", plural="", group="") for template in templates]
    found += re.findall(r"\w+|[^\w\s]", " ".join(texts))
    found += [word for answers in ANSWERS.values() for word in answers]
    found += [*CLASSES, *PLURALS.values(), *GROUPS]
    return list(dict.fromkeys(found))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that pads on the left and adds no tokens of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {word: i for i, word in enumerate(words())}
    core = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # words and runs of punctuation; the newline vanishes
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        extra_special_tokens=[IMAGE],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=256,
    )
