"""What each edit writes, where, and what it leaves alone."""

from typing import Any

import pytest
import torch

from mmlens.errors import (
    InterventionDidNothing,
    InterventionError,
    SelectorError,
    ShapeError,
    UnknownGroup,
    UnknownHook,
)
from mmlens.interventions import Block, HeadMask, ImageKV, Mean, Patch, Scale, Zero
from tests.model.conftest import Pair, make_pair

SITES = [
    "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "q", "k", "v", "rot_q", "rot_k", "z", "result",
    "pre", "pre_linear", "post",
]  # fmt: skip


@pytest.fixture(scope="module")
def pair() -> Pair:
    """Grouped-query attention, two prompts of different length."""
    return make_pair(2)


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    """No autograd."""
    with torch.no_grad():
        yield


def recorded(pair: Pair, name: str, interventions: Any) -> torch.Tensor:
    """One activation under interventions."""
    return pair.model.run(pair.inputs, interventions, record=[name]).cache[name]


def full_name(site: str) -> str:
    """The site's hook name in layer 1."""
    from mmlens.interventions.sites import hook_name_of

    return hook_name_of(site, 1)


@pytest.mark.parametrize("site", SITES)
def test_zero_writes_zeros_at_the_selected_positions_only(pair: Pair, site: str) -> None:
    name = full_name(site)
    clean = pair.model.run_with_cache(pair.inputs, names_filter=[name])[1][name]
    edited = recorded(pair, name, Zero(at=site, layers=1, pos="question"))
    question = pair.inputs.mask("question")
    assert (edited[question] == 0).all()
    assert (clean[question] != 0).any()
    assert torch.equal(edited[~question], clean[~question])


@pytest.mark.parametrize("site", ["q", "z", "rot_q", "result"])
def test_heads_select_heads(pair: Pair, site: str) -> None:
    name = full_name(site)
    clean = pair.model.run_with_cache(pair.inputs, names_filter=[name])[1][name]
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1, 2] = True
    selectors: list[tuple[Any, int | None]] = [(2, 1), ([2], 1), ([(1, 2)], None), (mask, None)]
    for heads, layers in selectors:
        edited = recorded(pair, name, Scale(at=site, layers=layers, heads=heads, factor=3.0))
        assert torch.equal(edited[pair.real][:, 2], clean[pair.real][:, 2] * 3)
        assert torch.equal(edited[:, :, [0, 1, 3]], clean[:, :, [0, 1, 3]])
        assert torch.equal(edited[~pair.real], clean[~pair.real])


def test_earlier_positions_are_bit_equal(pair: Pair) -> None:
    """In a causal decoder an edit at the final token cannot reach back (padding queries read everything)."""
    clean = pair.model(pair.inputs)
    edited = pair.model.run(pair.inputs, Zero(at="z", layers=0, pos="final")).logits
    earlier = pair.real.clone()
    earlier[:, -1] = False
    assert torch.equal(edited[earlier], clean[earlier])
    assert not torch.equal(edited[:, -1], clean[:, -1])


def test_mean_of_image_tokens_by_hand(pair: Pair) -> None:
    name = full_name("z")
    clean = pair.model.run_with_cache(pair.inputs, names_filter=[name])[1][name]
    edited = recorded(pair, name, Mean(at="z", layers=1, heads=[0, 3], pos="image"))
    for sample in range(2):
        image = pair.inputs.image_mask[sample]
        mean = clean[sample, image].mean(0)
        torch.testing.assert_close(edited[sample, image][:, 0], mean[0].expand(16, -1))
        assert torch.equal(edited[sample, :, 1:3], clean[sample, :, 1:3])


def test_mean_of_prompt_tokens_ignores_padding(pair: Pair) -> None:
    name = full_name("resid_mid")
    clean = pair.model.run_with_cache(pair.inputs, names_filter=[name])[1][name]
    edited = recorded(pair, name, Mean(at="resid_mid", layers=1, pos="final", baseline="prompt_tokens"))
    for sample in range(2):
        torch.testing.assert_close(edited[sample, -1], clean[sample, pair.real[sample]].mean(0))


def test_mean_of_other_heads_by_hand(pair: Pair) -> None:
    name = full_name("z")
    clean = pair.model.run_with_cache(pair.inputs, names_filter=[name])[1][name]
    edited = recorded(pair, name, Mean(at="z", layers=1, heads=2, baseline="other_heads"))
    torch.testing.assert_close(edited[:, :, 2][pair.real], clean[:, :, [0, 1, 3]].mean(2)[pair.real])


def test_patching_everything_from_another_run_gives_its_logits(pair: Pair) -> None:
    other = pair.model.prepare({**pair.batch, "pixel_values": pair.batch["pixel_values"].flip(0)})
    target = pair.model(other)
    _, cache = pair.model.run_with_cache(other, names_filter=["blocks.1.hook_resid_pre"])
    patched = pair.model.run(pair.inputs, Patch(at="resid_pre", layers=1, source=cache)).logits
    assert torch.equal(patched[pair.real], target[pair.real])


def test_patching_the_image_moves_the_answer(pair: Pair) -> None:
    other = pair.model.prepare({**pair.batch, "pixel_values": pair.batch["pixel_values"].flip(0)})
    _, cache = pair.model.run_with_cache(other, names_filter=["hook_image_features"])
    patched = pair.model.run(pair.inputs, Patch(at="image_features", source=cache)).logits
    assert torch.equal(patched, pair.model(other))


@pytest.mark.parametrize(
    "at", ["image_features", "projector.out", "projector.in", "vision.resid_post", "vision.embed"]
)
def test_image_sites_are_selected_by_sequence_position(pair: Pair, at: str) -> None:
    """The fifth image token of a sample is the fifth cell in the tower, whose first row is the class token."""
    chosen = torch.zeros_like(pair.inputs.image_mask)
    for sample in range(2):
        chosen[sample, pair.inputs.image_mask[sample].nonzero()[4]] = True
    layers = 0 if at == "vision.resid_post" else None
    edit = Zero(at=at, layers=layers, pos=chosen)
    name = {"vision.resid_post": "vision.blocks.0.hook_resid_post", "vision.embed": "vision.hook_embed"}.get(
        at, f"hook_{at}" if at == "image_features" else at.replace(".", ".hook_")
    )
    edited = recorded(pair, name, edit)
    zero = (edited == 0).all(dim=-1).view(2, -1)
    offset = 1 if at.startswith("vision") else 0
    assert zero.nonzero()[:, 1].tolist() == [4 + offset, 4 + offset]
    assert not torch.equal(pair.model.run(pair.inputs, edit).logits[:, -1], pair.model(pair.inputs)[:, -1])


def test_head_outputs_of_the_tower_can_be_edited(pair: Pair) -> None:
    run = pair.model.run(
        pair.inputs, [Zero(at="vision.z", layers=0, heads=1), Scale(at="vision.attn_scores", factor=0.0)]
    )
    assert (run.logits - pair.model(pair.inputs))[:, -1].abs().max() > 1e-3
    assert [len(entry.hooks) for entry in run.ledger.entries] == [1, 2]


@pytest.mark.parametrize("factor", [-1.0, 0.0, 5.0])
def test_editing_scores_never_opens_the_future(pair: Pair, factor: float) -> None:
    """Closed scores are the lowest finite number: flipped or zeroed, they would open what causality closed."""
    name = "blocks.1.attn.hook_pattern"
    scale = Scale(at="attn_scores", layers=1, factor=factor)
    pattern = recorded(pair, name, scale)
    n = pair.inputs.n_pos
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    real = pair.real
    for sample in range(2):
        rows = pattern[sample][:, real[sample]]
        assert (rows[..., future[real[sample]]] == 0).all()
        assert (rows[..., ~real[sample]] == 0).all()
        if factor == 0:
            last = rows[:, -1][:, real[sample]]
            torch.testing.assert_close(last, torch.full_like(last, 1 / int(real[sample].sum())))
    assert pair.model.run(pair.inputs, scale).ledger.entries[0].changed > 0


def test_interventions_compose_in_list_order(pair: Pair) -> None:
    name = full_name("z")
    zero, scale = Zero(at="z", layers=1, heads=0), Scale(at="z", layers=1, heads=0, factor=0.5)
    both = recorded(pair, name, [scale, zero])
    assert (both[:, :, 0][pair.real] == 0).all()
    with pytest.raises(InterventionDidNothing, match="Scale"):
        pair.model.run(pair.inputs, [zero, scale])


def test_block_without_renormalising_leaves_the_other_weights(pair: Pair) -> None:
    name = "blocks.1.attn.hook_pattern"
    clean = pair.model.run_with_cache(pair.inputs, names_filter=[name])[1][name]
    image = pair.inputs.image_mask
    for renormalise in (False, True):
        block = Block(src="image", dst="final", layers=1, renormalise=renormalise)
        blocked = recorded(pair, name, block)
        for sample in range(2):
            assert (blocked[sample, :, -1][:, image[sample]] == 0).all()
            rest = blocked[sample, :, -1][:, ~image[sample]]
            kept = clean[sample, :, -1][:, ~image[sample]]
            expected = kept / kept.sum(-1, keepdim=True) if renormalise else kept
            torch.testing.assert_close(rest, expected)
        assert torch.equal(blocked[:, :, :-1], clean[:, :, :-1])


def test_a_block_that_leaves_nothing_to_read_is_refused(pair: Pair) -> None:
    with pytest.raises(InterventionError, match="no key to read"):
        pair.model.run(pair.inputs, Block(src="all", dst="final"))


def test_head_mask_all_ones_is_the_clean_run(pair: Pair) -> None:
    run = pair.model.run(pair.inputs, HeadMask(mask=torch.ones(3, 4, dtype=torch.bool)))
    assert torch.equal(run.logits, pair.model(pair.inputs))


def test_head_mask_knockout_is_a_block(pair: Pair) -> None:
    keep = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) > 0.5
    masked = pair.model.run(pair.inputs, HeadMask(mask=keep, baseline="knockout")).logits
    blocked = pair.model.run(pair.inputs, Block(src="image", dst="text", heads=~keep)).logits
    assert torch.equal(masked, blocked)


@pytest.mark.parametrize("baseline", ["mean_image_tokens", "zero"])
def test_head_mask_by_hand_in_the_first_layer(pair: Pair, baseline: str) -> None:
    """Replaces keys and values in numpy-like steps and compares z of an ablated head at the final token."""
    keep = torch.ones(3, 4, dtype=torch.bool)
    keep[0, 3] = False
    names = [f"blocks.0.attn.hook_{name}" for name in ("rot_q", "rot_k", "v", "z")]
    clean = pair.model.run_with_cache(pair.inputs, names_filter=names)[1]
    masked = recorded(pair, names[3], HeadMask(mask=keep, baseline=baseline))  # type: ignore[arg-type]
    for sample in range(2):
        image, real = pair.inputs.image_mask[sample], pair.real[sample]
        k, v = clean["rot_k", 0][sample, :, 1].clone(), clean["v", 0][sample, :, 1].clone()
        k[image] = k[image].mean(0) if baseline == "mean_image_tokens" else 0.0
        v[image] = v[image].mean(0) if baseline == "mean_image_tokens" else 0.0
        scores = (k[real] @ clean["rot_q", 0][sample, -1, 3]) / pair.model.cfg.d_head**0.5
        torch.testing.assert_close(masked[sample, -1, 3], scores.softmax(0) @ v[real])
        torch.testing.assert_close(masked[sample, :, :3], clean["z", 0][sample, :, :3])


def test_head_mask_per_sample(pair: Pair) -> None:
    masks = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(2)) > 0.5
    together = pair.model.run(pair.inputs, HeadMask(mask=masks)).logits
    for sample in range(2):
        alone = pair.model.run(pair.inputs, HeadMask(mask=masks[sample])).logits[sample]
        torch.testing.assert_close(together[sample], alone, atol=1e-6, rtol=0)


def test_given_image_keys_and_values_equal_the_named_baseline(pair: Pair) -> None:
    zeros = torch.zeros(3, 2, pair.model.cfg.d_head)
    keep = torch.zeros(3, 4, dtype=torch.bool)
    named = pair.model.run(pair.inputs, HeadMask(mask=keep, baseline="zero")).logits
    given = pair.model.run(pair.inputs, HeadMask(mask=keep, baseline=ImageKV(k=zeros, v=zeros))).logits
    assert torch.equal(named, given)


def test_the_ledger_counts(pair: Pair) -> None:
    entry = pair.model.run(
        pair.inputs, Zero(at="z", layers=[0, 2], heads=[1, 2], pos="image")
    ).ledger.entries[0]
    assert list(entry.hooks) == ["blocks.0.attn.hook_z", "blocks.2.attn.hook_z"]
    assert entry.matched == entry.changed == 2 * 2 * 2 * 16 * pair.model.cfg.d_head
    assert "2 hook points" in str(entry)


TOO_SMALL = ImageKV(k=torch.zeros(1, 1, 1), v=torch.zeros(1, 1, 1))


def with_field(value: Any, name: str, field: Any) -> Any:
    """A frozen value with one field set past the type checks that only tests have."""
    object.__setattr__(value, name, field)
    return value


BAD: list[tuple[Any, type[Exception], str]] = [
    (Zero(at="zz"), UnknownHook, "no site named 'zz'"),
    (Zero(at="z", layers=3), SelectorError, "layer 3 does not exist"),
    (Zero(at="z", heads=4), SelectorError, "head 4 does not exist"),
    (Zero(at="k", heads=2), SelectorError, "head 2 does not exist"),
    (Zero(at="z", layers=1, heads=[(1, 1)]), SelectorError, "already name their layers"),
    (Zero(at="z", heads=[1, (1, 1)]), SelectorError, "mixes"),
    (Zero(at="resid_pre", heads=1), InterventionError, "no head axis"),
    (Zero(at="embed", layers=1), SelectorError, "leave layers out"),
    (Zero(at="z", heads=torch.ones(3, 5, dtype=torch.bool)), ShapeError, r"Bool\[layer, head=4\]"),
    (Zero(at="z", pos="nonsense"), UnknownGroup, "nonsense"),
    (Zero(at="z", pos="object"), UnknownGroup, "object"),
    (Zero(at="z", pos=[400]), SelectorError, "400"),
    (Mean(at="pattern"), InterventionError, "not defined"),
    (Mean(at="resid_pre", baseline="other_heads"), InterventionError, "head axis"),
    (Patch(at="z", layers=0, source=torch.zeros(1, 2, 3)), ShapeError, "has shape"),
    (Patch(at="z", layers=0, source={}), InterventionError, "record it first"),
    (Patch(at="z", layers=0, source=torch.full((1,), torch.nan)), InterventionError, "NaN"),
    (with_field(Mean(at="z"), "baseline", "everything"), InterventionError, "unknown mean baseline"),
    (Block(src="image", dst="object"), UnknownGroup, "object"),
    (HeadMask(mask=torch.ones(2, 4, dtype=torch.bool)), ShapeError, r"\[3, 4\]"),
    (HeadMask(mask=torch.zeros(3, 4, dtype=torch.bool), baseline=TOO_SMALL), ShapeError, "ImageKV.k"),
    (Block(src="final", dst="image"), InterventionDidNothing, "matched no element"),
    (Scale(at="z", factor=1.0), InterventionDidNothing, "left every one as it was"),
]  # fmt: skip


@pytest.mark.parametrize(("intervention", "error", "message"), BAD, ids=[f"{i}" for i in range(len(BAD))])
def test_what_must_fail(pair: Pair, intervention: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pair.model.run(pair.inputs, [intervention])
    assert not any(point.has_hooks() for point in pair.model.hook_dict.values())


@pytest.mark.parametrize(
    ("name", "field", "error", "message"),
    [
        ("mask", torch.ones(3, 4), ShapeError, r"Bool\[layer, head\]"),
        ("baseline", "median", InterventionError, "unknown head baseline"),
    ],
)
def test_malformed_head_masks(name: str, field: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        with_field(HeadMask(mask=torch.ones(3, 4, dtype=torch.bool)), name, field).__post_init__()
