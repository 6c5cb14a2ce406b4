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
# # 8. Head attribution in depth
#
# Tutorial 1 asked which heads carry the image into an answer and got a map. This one asks what the map is worth: what
# it sees that one-head-at-a-time ablation does not, how its masks should be drawn and how many of them it takes, how
# sure each number is, what a high R² does *not* say, and how to write the whole down so that a reader can check it.

# %%
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mmlens import (
    HookedVLM,
    PlantedTruth,
    collect,
    head_attribution,
    head_interactions,
    pooled_head_attribution,
    single_head_ablation,
    sweep,
)
from mmlens.datasets import scenes
from mmlens.engine import open_runs
from mmlens.metrics import METRICS
from mmlens.plots import calibration, head_map
from mmlens.pretrained import path
from mmlens.sweeps import SerialExecutor

torch.set_grad_enabled(False)
model = HookedVLM.from_pretrained("scenes")
quiet = {"progress": False}

# %% [markdown]
# ## Heads that stand in for each other
#
# In `planted-redundant` three known heads bring the picture into the text, and any one of them is enough. Taking one
# away costs little, so ablation of single heads finds little, and of either sign. Head attribution takes random
# *halves* of all heads away, so that each head is often needed.

# %%
redundant = HookedVLM.from_pretrained("planted-redundant")
truth = PlantedTruth.load(path("planted-redundant") / "truth.mmlens").first(4)
asked = scenes.prompts("heldout", 4, family="colour", seed=21)  # those of the truth
attributed = head_attribution(redundant, asked, **quiet)
alone = single_head_ablation(redundant, asked, **quiet)

layers, heads = zip(*truth.players, strict=True)
exact = truth.exact("colour", index="banzhaf").values
pd.DataFrame(
    {
        "exact": exact[layers, heads],
        "head attribution": attributed.theta.mean("sample").values[layers, heads],
        "single-head ablation": alone.score.mean("sample").values[layers, heads],
    },
    index=pd.Index([f"L{layer}H{head}" for layer, head in truth.players], name="logits"),
).round(3)

# %% [markdown]
# *Exact* is what the head adds on average over all subsets of the others, from a truth file that holds every subset.
# Attribution is an estimate of just that.
#
# A coefficient is a mean, and a mean cannot say that two heads are spares of each other. `head_interactions` can:
# what the second head adds when the first reads the image, minus what it adds when it does not. Negative = either can
# do the work.

# %%
together = head_interactions(redundant, asked, truth.players, **quiet)
between = truth.interactions("colour", index="banzhaf").values
number = {player: i for i, player in enumerate(truth.players)}
pd.DataFrame(
    {
        "exact": [between[number[one], number[other]] for one, other in together.pairs],
        "estimated": np.asarray(together.interaction).mean(axis=0),
    },
    index=pd.Index([f"L{a}H{b}, L{c}H{d}" for (a, b), (c, d) in together.pairs], name="logits"),
).round(3)

# %% [markdown]
# ## Which masks, and how many
#
# The three laws, by what they cost: error of the 48 coefficients against those of ten times as many masks, for one
# prompt, by least squares, over three draws each.
#
# * `iid`: every head is kept by a coin of its own;
# * `antithetic`: every mask is followed by its complement, which cancels all interactions of even order;
# * `hadamard`: complements, and the columns of all heads exactly orthogonal.

# %%
prompt = scenes.prompts("attribution", 1, family="main", seed=0)
fast = {**quiet, "estimator": "ols", "n_heldout": 16, "self_check": False}
many = head_attribution(model, prompt, n_masks=3840, seed=99, **fast).theta.values


def error(design: str, n_masks: int) -> float:
    """Root mean square error of the coefficients, in logits, over three draws of masks."""
    draws = [
        head_attribution(model, prompt, n_masks=n_masks, design=design, seed=seed, **fast).theta.values - many
        for seed in range(3)
    ]
    return float(np.sqrt(np.mean(np.square(draws))))


designs = ("iid", "antithetic", "hadamard")
pd.DataFrame(
    {design: [error(design, n) for n in (192, 384, 768)] for design in designs},
    index=pd.Index([192, 384, 768], name="masks"),
).round(3)

# %% [markdown]
# That is why `design="auto"` takes Hadamard blocks. `n_masks="auto"` begins with about four masks per head and draws
# more until the map agrees with itself.
#
# ## How sure is each number?
#
# Two kinds of evidence come with every result. `interval` is a bootstrap over masks, for each head. `split_half` fits
# two halves of the masks apart and correlates the two maps; `reliability` is what that makes for the whole.

# %%
result = head_attribution(model, scenes.prompts("attribution", 6, family="main", seed=0), seed=0, **quiet)
pd.DataFrame(
    {name: result.data[name].values for name in ("n_masks", "split_half", "reliability", "r2")}
).round(4)

# %%
head_map(result)

# %% [markdown]
# Does a 95 % interval hold the right value 95 times in 100? Draw the masks anew, twenty times, and count over heads.
# (The right value is that of the many masks above. Twenty draws of one prompt are an illustration, no
# test.)

# %%
covered = []
for seed in range(20):
    once = head_attribution(model, prompt, n_masks=192, design="antithetic", seed=seed, **fast)
    low, high = (once.interval.sel(bound=end).values for end in ("lower", "upper"))
    covered.append((low <= many) & (many <= high))
print(f"covered: {np.mean(covered):.1%} of {np.size(covered)} intervals")

# %% [markdown]
# Masks are one source of chance; *prompts* are the other. The interval of one prompt's map says nothing about the next
# prompt. `result.summary()` gives the mean over prompts with an interval over prompts, and that is the one to report
# for a family of questions.
#
# ## What R² says, and what it does not
#
# R² on fresh masks says how well "the heads' shares add up" describes this model on this prompt. It does not say that
# the heads carry anything. The same analysis of a model with *random weights*:

# %%
twin = HookedVLM.from_pretrained("scenes-random")
control = head_attribution(twin, scenes.prompts("attribution", 6, family="main", seed=0), seed=0, **quiet)
pd.DataFrame(
    {
        name: {
            "held-out R²": float(one.r2.mean()),
            "reliability": float(one.data["reliability"].mean()),
            "effect of all heads (logits)": float((one.data["clean"] - one.data["ablated"]).mean()),
            "largest |θ| (logits)": float(np.abs(one.theta.mean("sample")).max()),
        }
        for name, one in {"scenes": result, "scenes-random": control}.items()
    }
).round(3)

# %% [markdown]
# The random model is the *more* linear one: a small perturbation of anything smooth is linear. So read R² beside
# `clean - ablated`. If the image moves the answer's logit by nothing, a perfect map explains nothing.

# %%
calibration(result)

# %% [markdown]
# A low R² is no failure of the method either. It says that heads need or replace each other; `planted-redundant` above
# is the example, and interactions are the next question to ask:

# %%
print("held-out R² where three heads replace each other:", attributed.r2.values.round(2))

# %% [markdown]
# ## Few masks: priors and warm starts
#
# On a large model each mask is dear. `prior="gates"` begins with integrated gradients over head gates (sixteen passes)
# and lets the masks correct them; an earlier result serves as a prior for the next one ("warm start"), under another
# seed. 32 masks for 48 heads:

# %%
few = {**quiet, "n_masks": 32, "design": "antithetic", "n_heldout": 16, "seed": 7}
maps = {
    "ridge, no prior": head_attribution(model, prompt, estimator="ridge", **few),
    "prior: gradients of gates": head_attribution(model, prompt, prior="gates", **few),
    "prior: mean map of other prompts": head_attribution(
        model,
        prompt,
        prior=head_attribution(model, scenes.prompts("heldout", 4, family="main"), **quiet),
        **few,
    ),
}
for name, one in maps.items():
    print(f"{name:34} r = {np.corrcoef(one.theta.values.ravel(), many.ravel())[0, 1]:.3f}")

# %% [markdown]
# A prior that is wrong is left aside where the masks can tell. It is a way to save masks, and never evidence:
# `reliability` compares halves that were fitted without it.
#
# ## One map for many prompts
#
# For a family of questions one map may do, with an intercept for each prompt and a few masks each. The price is an
# assumption, and `r2` of each prompt says whether it holds. Twelve prompts of one family, then six each of two:

# %%
main = scenes.prompts("attribution", 12, family="main", seed=1)
mixed = main[:6] + scenes.prompts("attribution", 6, family="colour", seed=1)
for name, some in {"main": main, "main and colour": mixed}.items():
    pooled = pooled_head_attribution(model, some, n_masks=16, **quiet)
    print(f"{name:16} 16 masks a prompt, reliability {float(pooled.data['reliability']):.2f}; ", end="")
    print(f"R² of prompts: median {float(pooled.r2.median()):.2f}, lowest {float(pooled.r2.min()):.2f}")

# %% [markdown]
# Two families have two maps, and their mean describes neither: the heads that look up a named object's colour do
# nothing for "What is the main object?".
#
# ## Speed, and why it is exact
#
# What text reads from the image is all that a mask changes. So the image and everything before it run once, and each
# mask costs only the text behind it. Nothing is approximated, and every run checks that: two random masks go through
# both engines first (`self_check`), and a disagreement is an error. Here are 64 masks through both.

# %%
sample = model.encode_images(model.prepare(prompt))
masks = torch.rand(64, 6, 8, generator=torch.Generator().manual_seed(0)) < 0.5
values, seconds = {}, {}
for engine in ("plain", "prefix"):
    runs = open_runs(model, sample, metric=METRICS["logit"], engine=engine, generator=torch.Generator())
    runs(masks[:2])  # the first call prepares
    began = time.perf_counter()
    values[engine] = runs(masks)
    seconds[engine] = time.perf_counter() - began
print(f"largest difference: {(values['plain'] - values['prefix']).abs().max():.1e} logits")
print(f"plain / prefix, in time: {seconds['plain'] / seconds['prefix']:.0f}")

# %% [markdown]
# (What the ratio is depends on the machine and on how much text follows how many image tokens; a LLaVA has 576 of them,
# this model 64. The documentation's page on benchmarks has measurements.)
#
# ## Sweeps that survive
#
# A thousand prompts take hours, and hours are interrupted. `sweep` writes each prompt's result as soon as it is there.
# Here a sweep of five is stopped after two, as by Ctrl-C:


# %%
class Interrupted:
    """An executor that stops after two units."""

    def map(self, job, units, model):
        for i, done in enumerate(SerialExecutor().map(job, units, model)):
            yield done
            if i == 1:
                raise KeyboardInterrupt


folder = Path(tempfile.mkdtemp()) / "sweep"
many_prompts = scenes.prompts("attribution", 5, family="main", seed=2)
options = {"n_masks": 192, "seed": 0}
try:
    sweep(model, many_prompts, "head_attribution", folder, options, executor=Interrupted(), **quiet)
except KeyboardInterrupt:
    print("stopped")

report = sweep(model, many_prompts, "head_attribution", folder, options, **quiet)
print(f"{report.found} found, {report.computed} computed")

# %% [markdown]
# What was there was not computed again, and the whole is what one call would have given:

# %%
collected = collect(folder)
at_once = head_attribution(model, many_prompts, **options, **quiet)
print(
    f"largest difference of theta: {np.abs(collected.theta.values - at_once.theta.values).max():.1e} logits"
)

# %% [markdown]
# ## How to report it
#
# | question of the reader | what answers it |
# |---|---|
# | what was explained? | metric and its unit; the prompts, how many, from where |
# | what does "ablated" mean? | the baseline |
# | how was the map made? | law and number of masks, estimator, seed |
# | does it agree with itself? | reliability, intervals |
# | does a sum of heads describe the model? | R² on fresh masks |
# | is there anything to explain? | metric with no head and with every head ablated |
# | would a random network do the same? | the same figures of a random-weight twin |
# | does the ranking hold? | faithfulness *and* completeness on other prompts, beside random heads of the same layers |
# | is it better than another method? | the difference, paired by prompt, with its interval (`paired_leads`) |
# | can I run it again? | model, weights, versions: `result.info` |
#
# Every figure is in the result, so the paragraph can be, too:


# %%
def described(result, control) -> str:
    """A paragraph for a paper, from the results' own fields."""
    data, attrs, info = result.data, result.data.attrs, result.info
    best = result.top(2).to_dict("records")
    named = " and ".join(
        f"L{one['layer']}H{one['head']} ({one['theta']:.2f} [{one['lower']:.2f}, {one['upper']:.2f}])"
        for one in best
    )
    effect, theirs = (float((one.data["clean"] - one.data["ablated"]).mean()) for one in (result, control))
    return (
        f"We attributed the {attrs['metric']} of the answer in {info.model_id} (weights {info.weight_fingerprint[:8]}) "
        f"to its {result.theta[0].size} attention heads on {result.n} prompts. An ablated head reads "
        f"{attrs['baseline']} in place of every image token. Per prompt, {attrs['estimator']} was fitted to "
        f"{int(data['n_masks'].median())} masks ({attrs['design']}; seed {info.seed}). Ablating all heads costs "
        f"{effect:.2f} {attrs['unit']}s ({theirs:+.2f} in a model with random weights). On fresh masks the fit has an "
        f"R² of {float(result.r2.median()):.2f} (median; lowest {float(result.r2.min()):.2f}; random weights "
        f"{float(control.r2.median()):.2f}); reliability of single maps {float(data['reliability'].median()):.3f}. "
        f"Strongest on average, with 95 % intervals over prompts: {named}."
    )


print(described(result, control))

# %% [markdown]
# ## What to take along
#
# * Single-head ablation asks what *only* this head does. Where heads replace each other the answer is "nothing".
# * Complements and orthogonal columns are free precision. Report the law of the masks.
# * An interval over masks is about one prompt; an interval over prompts is about the family.
# * R² judges the description, `clean - ablated` says whether there is something to describe, a random twin shows what
#   comes for free.
# * A ranking is a claim about other prompts. Test it there, beside the others.
