"""The hooked model against the unmodified Hugging Face model."""

import copy
from typing import Any

import pytest
import torch
from transformer_lens import ActivationCache, HookedRootModule

from mmlens.errors import InputError, InterventionDidNothing, MissingPixels, NonFiniteError, UnknownHook
from mmlens.model import HookedVLM
from tests.model.conftest import Pair, make_pair
from tests.tiny import tiny_batch, tiny_llava, tiny_processor

TOLERANCE = 1e-5


def keep(tensor: torch.Tensor, hook: Any) -> None:
    """A hook that changes nothing, to force the explicit attention path."""


def watch_pattern(name: str) -> bool:
    """Every pattern, of decoder and tower."""
    return name.endswith("hook_pattern")


def test_logits_equal_hugging_face_in_a_left_padded_batch(pair: Pair) -> None:
    ours, theirs = pair.model(pair.inputs), pair.hf_logits()
    assert not pair.real.all()
    assert (ours - theirs)[pair.real].abs().max() <= TOLERANCE


def test_explicit_attention_equals_hugging_face_too(pair: Pair) -> None:
    ours = pair.model.run_with_hooks(pair.inputs, fwd_hooks=[(watch_pattern, keep)])
    assert (ours - pair.hf_logits())[pair.real].abs().max() <= TOLERANCE


def test_unfused_attention_is_bit_equal_to_hugging_face_eager(pair: Pair) -> None:
    pair.model.fused_attention = False
    try:
        assert torch.equal(pair.model(pair.inputs)[pair.real], pair.hf_logits()[pair.real])
    finally:
        pair.model.fused_attention = True


def test_logits_equal_hugging_face_with_two_images() -> None:
    pair = make_pair(2, images=2)
    assert int(pair.inputs.image_mask[0].sum()) == 32
    assert (pair.model(pair.inputs) - pair.hf_logits())[pair.real].abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    "config",
    [
        {"bias": True},
        {"rope": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
        {
            "rope": {
                "rope_type": "llama3",
                "rope_theta": 50.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        {"vision_feature_layer": [-2, -1]},
        {"vision_feature_layer": -1},
    ],
    ids=["biases", "linear rope", "llama3 rope", "two feature layers", "last feature layer"],
)
def test_logits_equal_hugging_face_for_every_setting(config: dict[str, Any]) -> None:
    pair = make_pair(2, **config)
    assert (pair.model(pair.inputs) - pair.hf_logits())[pair.real].abs().max() <= TOLERANCE


def test_whole_sequence_as_features_keeps_the_class_token() -> None:
    hf = tiny_llava(seed=3, select_strategy="full")
    processor = tiny_processor()
    processor.vision_feature_select_strategy = "full"
    batch = tiny_batch(processor=processor)
    ours = HookedVLM.from_hf(hf, processor)(**batch)
    assert (ours - hf(**batch).logits).abs().max() <= TOLERANCE


def test_the_difference_of_the_fused_kernel_is_rounding(pair: Pair) -> None:
    """Unfused is bit-equal to Hugging Face (above); fused and unfused meet in float64.

    Hugging Face itself cannot be the float64 reference: its norms and softmax round to float32.
    """
    model = HookedVLM.from_hf(copy.deepcopy(pair.hf).double(), pair.model.processor)
    fused = model(pair.inputs)
    model.fused_attention = False
    assert 0 < (fused - model(pair.inputs))[pair.real].abs().max() < 1e-12
    assert (pair.model(pair.inputs) - pair.hf_logits())[pair.real].abs().max() > 1e-8


def test_hugging_face_model_is_untouched() -> None:
    hf, processor = tiny_llava(seed=2), tiny_processor()
    batch = dict(tiny_batch(processor=processor))
    before, attributes = hf(**batch).logits, set(vars(hf))
    implementation = hf.config._attn_implementation
    weights = copy.deepcopy(hf.state_dict())
    model = HookedVLM.from_hf(hf, processor)
    model.run_with_hooks(**batch, fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: z * 0)])
    assert torch.equal(hf(**batch).logits, before)
    assert set(vars(hf)) == attributes
    assert hf.config._attn_implementation == implementation
    assert all(torch.equal(tensor, weights[name]) for name, tensor in hf.state_dict().items())
    assert not any(p.requires_grad for p in hf.parameters())


def test_weights_share_storage_with_hugging_face(pair: Pair) -> None:
    attn, hf = pair.model.blocks[1].attn, pair.hf.model.language_model.layers[1].self_attn
    for ours, theirs in (
        (attn.W_Q, hf.q_proj),
        (attn.W_K, hf.k_proj),
        (attn.W_V, hf.v_proj),
        (attn.W_O, hf.o_proj),
    ):
        assert ours.untyped_storage().data_ptr() == theirs.weight.untyped_storage().data_ptr()
    assert pair.model.W_U.untyped_storage().data_ptr() == pair.hf.lm_head.weight.untyped_storage().data_ptr()
    theirs = {p.untyped_storage().data_ptr() for p in pair.hf.parameters()}
    assert all(p.untyped_storage().data_ptr() in theirs for p in pair.model.parameters())


def test_per_head_weights_reproduce_the_projection(pair: Pair) -> None:
    attn, cfg = pair.model.blocks[0].attn, pair.model.cfg
    x = torch.randn(2, 3, cfg.d_model)
    q, k, v = attn.project(x)
    torch.testing.assert_close(torch.einsum("bpd,hde->bphe", x, attn.W_Q), q)
    torch.testing.assert_close(torch.einsum("bpd,hde->bphe", x, attn.W_K), k)
    torch.testing.assert_close(torch.einsum("bpd,hde->bphe", x, attn.W_V), v)
    assert pair.model.W_Q.shape == (cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_head)
    assert pair.model.W_K.shape == (cfg.n_layers, cfg.n_key_value_heads, cfg.d_model, cfg.d_head)
    assert pair.model.W_O.shape == (cfg.n_layers, cfg.n_heads, cfg.d_head, cfg.d_model)


def test_head_results_sum_to_attention_output(pair: Pair) -> None:
    names = [f"blocks.{layer}.{hook}" for layer in range(3) for hook in ("attn.hook_result", "hook_attn_out")]
    logits, cache = pair.model.run_with_cache(pair.inputs, names_filter=names)
    assert isinstance(cache, ActivationCache)
    for layer in range(3):
        torch.testing.assert_close(
            cache["result", layer].sum(dim=2), cache["attn_out", layer], atol=1e-6, rtol=0
        )
    assert (logits - pair.model(pair.inputs)).abs().max() <= TOLERANCE


def test_head_results_include_the_output_bias_once() -> None:
    pair = make_pair(2, bias=True)
    names = ["blocks.1.attn.hook_result", "blocks.1.hook_attn_out"]
    _, cache = pair.model.run_with_cache(pair.inputs, names_filter=names)
    bias = pair.model.blocks[1].attn.o_proj.bias
    torch.testing.assert_close(cache["result", 1].sum(dim=2) + bias, cache["attn_out", 1], atol=1e-6, rtol=0)


def test_caching_changes_nothing(pair: Pair) -> None:
    fused = pair.model(pair.inputs)
    slow = ("hook_attn_scores", "hook_pattern", "hook_result", "hook_scale", "hook_normalized")
    logits, cache = pair.model.run_with_cache(pair.inputs, names_filter=lambda name: not name.endswith(slow))
    assert torch.equal(logits, fused)
    resid = cache["resid_post", 2]
    assert torch.equal(pair.model.logits(resid), fused)


def test_shapes_follow_transformer_lens(pair: Pair) -> None:
    cfg = pair.model.cfg
    _, cache = pair.model.run_with_cache(pair.inputs)
    batch, pos = pair.inputs.input_ids.shape
    assert cache["q", 1].shape == cache["z", 1].shape == (batch, pos, cfg.n_heads, cfg.d_head)
    assert cache["k", 1].shape == cache["v", 1].shape == (batch, pos, cfg.n_key_value_heads, cfg.d_head)
    assert cache["pattern", 1].shape == cache["attn_scores", 1].shape == (batch, cfg.n_heads, pos, pos)
    assert cache["resid_pre", 0].shape == cache["embed"].shape == (batch, pos, cfg.d_model)
    assert cache["post", 1].shape == (batch, pos, cfg.d_mlp)
    cells = cfg.vision.grid**2
    assert cache["vision.blocks.0.attn.hook_z"].shape == (
        batch,
        1 + cells,
        cfg.vision.n_heads,
        cfg.vision.d_head,
    )
    assert cache["projector.hook_out"].shape == (batch, cells, cfg.d_model)
    assert cache["hook_image_features"].shape == (batch * cells, cfg.d_model)
    torch.testing.assert_close(cache["pattern", 1].sum(-1), torch.ones(batch, cfg.n_heads, pos))


def test_image_features_stand_at_the_image_positions(plain_pair: Pair) -> None:
    _, cache = plain_pair.model.run_with_cache(
        plain_pair.inputs, names_filter=["hook_embed", "hook_image_features"]
    )
    embedded = cache["embed"][plain_pair.inputs.image_mask]
    assert torch.equal(embedded, cache["hook_image_features"])


def test_slices_are_taken_inside_the_hook(pair: Pair) -> None:
    names = ["blocks.2.attn.hook_pattern", "blocks.2.attn.hook_z", "blocks.1.hook_resid_post"]
    _, whole = pair.model.run_with_cache(pair.inputs, names_filter=names)
    _, sliced = pair.model.run_with_cache(
        pair.inputs, names_filter=names, pos="final", heads=[1, 3], dtype=torch.float64, device="cpu"
    )
    assert torch.equal(sliced["pattern", 2], whole["pattern", 2][:, [1, 3], -1:].double())
    assert torch.equal(sliced["z", 2], whole["z", 2][:, -1:, [1, 3]].double())
    assert torch.equal(sliced["resid_post", 1], whole["resid_post", 1][:, -1:].double())
    stored = sliced["pattern", 2].untyped_storage().nbytes()
    assert stored < whole["pattern", 2].untyped_storage().nbytes() / 4


def test_stop_and_start_at_a_layer_compose(pair: Pair) -> None:
    residual = pair.model(pair.inputs, stop_at_layer=1)
    assert residual.shape == (*pair.inputs.input_ids.shape, pair.model.cfg.d_model)
    resumed = pair.model(pair.inputs, start_at_layer=1, residual=residual)
    assert torch.equal(resumed, pair.model(pair.inputs))
    assert torch.equal(pair.model(pair.inputs, stop_at_layer=-2), residual)


def test_final_logits_only(pair: Pair) -> None:
    final = pair.model(pair.inputs, logits_pos="final")
    torch.testing.assert_close(final, pair.model(pair.inputs)[:, -1:], atol=1e-6, rtol=0)


def test_precomputed_image_features_skip_the_tower_and_change_nothing(pair: Pair) -> None:
    encoded = pair.model.encode_images(pair.inputs)
    assert torch.equal(pair.model(encoded), pair.model(pair.inputs))
    seen: list[str] = []
    hook = ("vision.blocks.0.hook_resid_post", lambda tensor, hook: seen.append(hook.name))
    pair.model.run_with_hooks(encoded, fwd_hooks=[hook])
    assert seen, "a hook in the tower brings the tower back"


def test_a_batch_equals_its_samples_alone(pair: Pair) -> None:
    together = pair.model(pair.inputs)
    for sample in range(2):
        alone = pair.model(pair.inputs.select([sample]))
        torch.testing.assert_close(together[sample, -alone.shape[1] :], alone[0], atol=1e-5, rtol=0)


@pytest.mark.gradients
def test_gradients_equal_hugging_face(pair: Pair) -> None:
    """Gradient of a logit with respect to one head's z, against a hook on the Hugging Face o_proj."""
    kept: dict[str, torch.Tensor] = {}

    def take(z: torch.Tensor, hook: Any) -> torch.Tensor:
        kept["z"] = z.detach().requires_grad_()
        return kept["z"]

    def take_hf(module: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        kept["hf"] = args[0].detach().requires_grad_()
        return (kept["hf"],)

    logits = pair.model.run_with_hooks(pair.inputs, fwd_hooks=[("blocks.1.attn.hook_z", take)])
    ours = torch.autograd.grad(logits[:, -1, 5].sum(), kept["z"])[0]
    handle = pair.hf.model.language_model.layers[1].self_attn.o_proj.register_forward_pre_hook(take_hf)
    theirs_logits = pair.hf(**pair.batch, position_ids=pair.inputs.position_ids).logits
    handle.remove()
    theirs = torch.autograd.grad(theirs_logits[:, -1, 5].sum(), kept["hf"])[0]
    assert (ours.flatten(2) - theirs)[pair.real].abs().max() <= TOLERANCE
    assert ours.abs().max() > 1e-3


@pytest.mark.gradients
def test_backward_hooks_fire(plain_pair: Pair) -> None:
    seen: dict[str, torch.Tensor] = {}
    names = ["blocks.0.attn.hook_z", "vision.blocks.0.attn.hook_z", "projector.hook_out"]
    hooks = [(name, lambda grad, hook: seen.update({hook.name: grad})) for name in names]
    model = HookedVLM.from_hf(plain_pair.hf)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with model.hooks(bwd_hooks=hooks):
        model(**plain_pair.batch)[:, -1, 5].sum().backward()
    assert sorted(seen) == sorted(names)
    assert all(grad.abs().max() > 0 for grad in seen.values())


def test_hooks_leave_no_trace(plain_pair: Pair) -> None:
    model, clean = plain_pair.model, plain_pair.model(plain_pair.inputs)

    def fail(tensor: torch.Tensor, hook: Any) -> None:
        raise ArithmeticError("planted")

    for _ in range(50):
        with pytest.raises(ArithmeticError, match="planted"):
            model.run_with_hooks(
                plain_pair.inputs,
                fwd_hooks=[("blocks.0.hook_resid_pre", keep), ("blocks.1.attn.hook_pattern", fail)],
            )
    assert not any(point.has_hooks() for point in model.hook_dict.values())
    assert torch.equal(model(plain_pair.inputs), clean)


def test_in_place_edits_act(plain_pair: Pair) -> None:
    def edit(scores: torch.Tensor, hook: Any) -> torch.Tensor:
        scores[:, 1, -1, :3] = -1e4
        return scores

    edited = plain_pair.model.run_with_hooks(
        plain_pair.inputs, fwd_hooks=[("blocks.0.attn.hook_attn_scores", edit)]
    )
    assert (edited - plain_pair.model(plain_pair.inputs))[:, -1].abs().max() > 1e-3


def test_is_a_hooked_root_module(plain_pair: Pair) -> None:
    assert isinstance(plain_pair.model, HookedRootModule)
    assert "blocks.0.attn.hook_z" in plain_pair.model.hook_dict


def test_transformer_lens_cache_methods_work(plain_pair: Pair) -> None:
    def plain(name: str) -> bool:
        return name.startswith(("blocks", "hook_embed", "ln_final")) and not name.endswith("hook_result")

    logits, cache = plain_pair.model.run_with_cache(plain_pair.inputs, names_filter=plain)
    stack, labels = cache.accumulated_resid(return_labels=True)
    assert stack.shape[0] == len(labels) == plain_pair.model.cfg.n_layers + 1
    torch.testing.assert_close(plain_pair.model.logits(stack[-1]), logits)
    parts = cache.decompose_resid(mode="full")
    torch.testing.assert_close(parts.sum(0), stack[-1], atol=1e-5, rtol=0)
    heads = cache.stack_head_results()
    assert heads.shape[0] == plain_pair.model.cfg.n_layers * plain_pair.model.cfg.n_heads


def test_transformer_lens_logit_attribution_sums_to_the_logit() -> None:
    pair = make_pair(2, bias=True)
    logits, cache = pair.model.run_with_cache(
        pair.inputs, names_filter=lambda name: not name.endswith(("hook_result", "pattern", "scores"))
    )
    token = torch.tensor([5, 7])
    parts = cache.decompose_resid(mode="all")[:, :, -1]
    scaled = parts / cache["ln_final.hook_scale"][:, -1] * pair.model.ln_final.weight
    directions = pair.model.tokens_to_residual_directions(token)
    torch.testing.assert_close(
        (scaled.sum(0) * directions).sum(-1), logits[[0, 1], -1, token], atol=1e-4, rtol=0
    )
    assert torch.equal(directions, pair.model.W_U[:, token].T)


def test_accumulated_bias_by_hand() -> None:
    model = make_pair(4, bias=True).model
    first, second = model.blocks[0], model.blocks[1]
    expected = first.attn.o_proj.bias + first.mlp.down_proj.bias
    torch.testing.assert_close(model.accumulated_bias(1), expected)
    torch.testing.assert_close(model.accumulated_bias(1, mlp_input=True), expected + second.attn.o_proj.bias)
    torch.testing.assert_close(model.accumulated_bias(1, include_mlp_biases=False), first.attn.o_proj.bias)
    assert not make_pair(4).model.accumulated_bias(3).any()


def test_embeddings_are_the_checkpoint_s(plain_pair: Pair) -> None:
    assert torch.equal(plain_pair.model.W_E, plain_pair.hf.get_input_embeddings().weight)


def test_unknown_hook_names_are_refused_with_a_hint(plain_pair: Pair) -> None:
    with pytest.raises(UnknownHook, match=r"blocks\.0\.attn\.hook_zz.*Did you mean blocks\.0\.attn\.hook_z"):
        plain_pair.model.run_with_hooks(plain_pair.inputs, fwd_hooks=[("blocks.0.attn.hook_zz", keep)])
    with pytest.raises(UnknownHook, match="matches none"):
        plain_pair.model.run_with_cache(plain_pair.inputs, names_filter=lambda name: "nothing" in name)
    with pytest.raises(UnknownHook):
        plain_pair.model.run_with_cache(plain_pair.inputs, names_filter=["blocks.9.attn.hook_z"])


def test_a_hook_outside_the_layers_that_ran_is_refused(plain_pair: Pair) -> None:
    with pytest.raises(InterventionDidNothing, match="never fired"):
        plain_pair.model.run_with_hooks(
            plain_pair.inputs, stop_at_layer=1, fwd_hooks=[("blocks.2.attn.hook_z", lambda z, hook: z * 0)]
        )


def test_token_ids_alone_are_refused(plain_pair: Pair) -> None:
    with pytest.raises(MissingPixels, match="pixels"):
        plain_pair.model(plain_pair.inputs.input_ids)
    with pytest.raises(MissingPixels):
        plain_pair.model(
            input_ids=plain_pair.batch["input_ids"], attention_mask=plain_pair.batch["attention_mask"]
        )
    with pytest.raises(InputError, match="nothing to run"):
        plain_pair.model()
    with pytest.raises(InputError, match="not both"):
        plain_pair.model(plain_pair.inputs, **plain_pair.batch)


def test_start_at_layer_needs_a_residual_of_the_right_shape(plain_pair: Pair) -> None:
    with pytest.raises(InputError, match="belong together"):
        plain_pair.model(plain_pair.inputs, start_at_layer=1)
    with pytest.raises(InputError, match="does not fit"):
        plain_pair.model(plain_pair.inputs, start_at_layer=1, residual=torch.zeros(1, 2, 3))
    with pytest.raises(InputError, match="layer 7 does not exist"):
        plain_pair.model(plain_pair.inputs, stop_at_layer=7)


def test_non_finite_activations_name_the_first_hook(plain_pair: Pair) -> None:
    def poison(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        return tensor.index_fill(1, torch.tensor([tensor.shape[1] - 1]), float("nan"))

    with pytest.raises(NonFiniteError, match=r"blocks\.1\.hook_mlp_out"):
        plain_pair.model.run_with_hooks(plain_pair.inputs, fwd_hooks=[("blocks.1.hook_mlp_out", poison)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_storage_and_computes_in_float32(dtype: torch.dtype) -> None:
    hf, processor = tiny_llava(seed=4, n_kv=2).to(dtype), tiny_processor()
    batch = dict(tiny_batch(processor=processor))
    model = HookedVLM.from_hf(hf, processor)
    assert model.embed.weight.dtype == dtype
    logits = model(**batch)
    assert logits.dtype == torch.float32
    reference = tiny_llava(seed=4, n_kv=2)
    reference.load_state_dict({name: tensor.float() for name, tensor in hf.state_dict().items()})
    assert (logits - reference(**batch).logits).abs().max() <= TOLERANCE
