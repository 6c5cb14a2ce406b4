"""A tiny model in which two heads alone write into the residual stream, and prompts whose answers need the image."""

from typing import Any

import torch

from tests.engine.build import prompt, tiny_model

PLANTED = ((0, 1), (2, 3))


def planted_model() -> Any:
    """Only two heads' outputs reach the residual stream; no other head can matter."""
    model = tiny_model()
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            for head in range(model.cfg.n_heads):
                if (layer, head) not in PLANTED:
                    block.attn.W_O[head] = 0.0
    return model


def helped_prompts(
    model: Any, n: int = 2, first: int = 0, question: str = "what colour is this object ?"
) -> list[Any]:
    """Prompts whose answer is the word that ablating every head costs most."""
    from mmlens.interventions import HeadMask

    asked = [prompt(first + i, question, answer=None, foil=None) for i in range(n)]
    inputs = model.prepare(asked)
    none = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, dtype=torch.bool)
    with torch.no_grad():
        effect = model(inputs)[:, -1] - model.run(inputs, [HeadMask(mask=none)]).logits[:, -1]
    effect[:, :3] = effect[:, -2:] = -torch.inf  # no special tokens
    words = [model.tokenizer.convert_ids_to_tokens(int(row.argmax())) for row in effect]
    return [prompt(first + i, question, answer=word, foil=None) for i, word in enumerate(words)]
