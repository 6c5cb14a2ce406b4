# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. A first look inside a vision-language model
#
# A LLaVA answers a question about a picture by letting its text tokens *read* image tokens. In this tutorial you
# load such a model, see which token is what, store activations, edit one head, cut the path from image to text,
# and finally ask **which attention heads carried the image into the answer**.
#
# Everything runs offline in seconds on `"scenes"`, a small LLaVA that ships with mmlens and was trained on
# pictures of coloured shapes. A real checkpoint is the same call with another name:
# `HookedVLM.from_pretrained("llava-hf/llava-1.5-7b-hf")`.

# %%
import torch

from mmlens import Block, HookedVLM, Zero, faithfulness, head_attribution
from mmlens.datasets import scenes
from mmlens.plots import curves, head_map, image_overlay

torch.set_grad_enabled(False)
model = HookedVLM.from_pretrained("scenes")
model.cfg

# %% [markdown]
# ## A question about a picture
#
# A `Prompt` holds a picture, a question and, if you have them, the expected answer and regions of the picture.
# The scenes come with all of it, because we drew them.

# %%
prompt = scenes.prompts("heldout", 1, family="main", seed=3)[0]
print(prompt.question, "→", prompt.answer)
prompt.image.resize((320, 320), 0)

# %% [markdown]
# `prepare` runs the checkpoint's own processor and labels every token once. *Roles* split the sequence; *groups*
# may overlap (here the object's tokens and the background's are groups inside the image).

# %%
inputs = model.prepare(prompt)
tokens = inputs.token_maps[0]
tokens

# %%
tokens.draw("object").resize((320, 320), 0)

# %% [markdown]
# The model is called as you would expect. Calling it on token ids *without* pixels is an error, not a number.

# %%
logits = model(inputs)
answer = model.tokenizer.decode([int(logits[0, -1].argmax())])
assert model.generate(inputs, max_new_tokens=1).text == [answer]
print(f"model: {answer!r}, expected: {prompt.answer!r}")

# %% [markdown]
# ## Storing activations
#
# `run_with_cache` keeps what passes the named hook points. The names and shapes are TransformerLens's. `pos` and
# `heads` slice *inside* the hook, so a long prompt costs only what you ask for: below, the last row of every
# attention pattern.

# %%
_, cache = model.run_with_cache(inputs, names_filter=lambda name: name.endswith("hook_pattern"), pos="final")
pattern = torch.stack(
    [cache["pattern", layer][0, :, 0] for layer in range(model.cfg.n_layers)]
)  # layer head key
on_image = pattern[..., inputs.image_mask[0]].sum(-1)
print("attention of the last token on the image, by layer (row) and head:")
print(on_image.numpy().round(2))

# %% [markdown]
# ## Editing a head
#
# Any hook function works, as in TransformerLens: it gets the activation and may return another.

# %%
answer_id = int(logits[0, -1].argmax())


def zero_head(z, hook):
    """z has shape [batch, pos, head, d_head]."""
    z[:, :, 0] = 0
    return z


edited = model.run_with_hooks(inputs, fwd_hooks=[("blocks.0.attn.hook_z", zero_head)])
by_hook = edited[0, -1, answer_id] - logits[0, -1, answer_id]

# %% [markdown]
# The same as an *intervention*: a value that says what, where and which heads. It works in batches, through cached
# generation, and keeps a ledger. One that changed nothing raises `InterventionDidNothing`.

# %%
run = model.run(inputs, Zero(at="z", layers=0, heads=0))
assert torch.equal(run.logits, edited)
print(run.ledger)
print(f"change of the answer's logit: {by_hook:+.3f}")

# %% [markdown]
# ## Cutting the path from image to text
#
# `Block` closes attention edges. If no text token may read an image token, the model cannot know the picture.

# %%
blocked = model.run(inputs, Block(src="image", dst="text"))
for name, values in (("clean", logits), ("blocked", blocked.logits)):
    top = values[0, -1].softmax(-1).topk(3)
    print(
        f"{name:8}",
        [(model.tokenizer.decode([int(i)]), round(float(p), 2)) for p, i in zip(*top, strict=True)],
    )

# %% [markdown]
# Where along the depth does the information pass? Block one layer at a time, for two kinds of reader. (This is one
# picture; tutorials on information flow do it with windows, many samples and intervals.)

# %%
for reader in ("question", "role", "final"):
    drops = [
        float(
            logits[0, -1, answer_id]
            - model.run(inputs, Block(src="image", dst=reader, layers=layer)).logits[0, -1, answer_id]
        )
        for layer in range(model.cfg.n_layers)
    ]
    print(f"image → {reader:9}", [round(drop, 2) for drop in drops])

# %% [markdown]
# ## Head attribution
#
# One head at a time misses heads that stand in for each other. *Head attribution* (Kim et al. 2025) ablates random
# sets of heads (an ablated head reads the average image token) and fits the answer's logit by a linear function of
# who was allowed to read. The coefficient θ of a head is its share. mmlens computes the image's part once and runs
# each mask on the text only, which is exact and many times faster.

# %%
prompts = scenes.prompts("attribution", 6, family="main", seed=0)
attribution = head_attribution(model, prompts, seed=0)
attribution.top(5)

# %% [markdown]
# Two numbers say whether a linear story is true at all: how well it predicts masks it was **not** fitted on.

# %%
print("held-out R²:     ", attribution.r2.values.round(3))
print("held-out Pearson:", attribution.heldout_pearson.values.round(3))
head_map(attribution)

# %%
image_overlay(attribution)

# %% [markdown]
# ## Is it so?
#
# A ranking is worth what it predicts on **other** pictures. Keep only the top heads and ablate all others
# (*faithfulness*), or ablate only them (*completeness*), and compare with random heads of the same layers.

# %%
held_out = scenes.prompts("heldout", 12, family="main", seed=0)
judged = faithfulness(model, held_out, {"head attribution": attribution}, seed=0)
curves(judged)

# %% [markdown]
# ## What to take along
#
# * Tokens have names: `"image"`, `"object"`, `"question"`, `"role"`, `"final"`; no index arithmetic.
# * Every hook point fires and acts; what does nothing raises.
# * A map of heads comes with its held-out fit, and a claim about heads with other pictures and random heads.
#
# The report of `mmlens demo` shows the same for more prompts, beside a model with random weights: look there
# before believing any figure that a random network would also give.
