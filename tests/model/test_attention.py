"""Which attention kernel runs, and that the two agree."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.model.conftest import Pair


def count_fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Notes the query shape of every call of the fused kernel."""
    calls: list[torch.Size] = []
    fused = F.scaled_dot_product_attention

    def counting(q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(q.shape)
        return fused(q, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    return calls


def test_only_watched_layers_leave_the_fused_kernel(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_fused_calls(monkeypatch)
    n_layers = pair.model.cfg.n_layers + len(pair.model.vision.blocks)
    pair.model(pair.inputs)
    assert len(calls) == n_layers
    for name in (
        "blocks.1.attn.hook_pattern",
        "blocks.1.attn.hook_attn_scores",
        "vision.blocks.0.attn.hook_pattern",
    ):
        calls.clear()
        pair.model.run_with_cache(pair.inputs, names_filter=name)
        assert len(calls) == n_layers - 1
    calls.clear()
    pair.model.run_with_cache(
        pair.inputs, names_filter=lambda name: name.endswith(("hook_z", "hook_q", "resid_post"))
    )
    assert len(calls) == n_layers


def test_decoding_one_token_needs_no_mask(plain_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_fused_calls(monkeypatch)
    plain_pair.model.generate(plain_pair.inputs.select([0]), max_new_tokens=3)
    steps = {shape[2] for shape in calls}
    assert steps == {plain_pair.inputs.select([0]).n_pos, 1, 17}  # prompt, new token, tower


def test_a_backward_hook_alone_keeps_its_pattern(plain_pair: Pair) -> None:
    """A gradient hook on the pattern must make the pattern exist."""
    seen: list[torch.Tensor] = []
    model = plain_pair.model
    with (
        torch.enable_grad(),
        model.hooks(bwd_hooks=[("blocks.2.attn.hook_pattern", lambda g, hook: seen.append(g))]),
    ):
        residual = model(plain_pair.inputs, stop_at_layer=2).detach().requires_grad_()
        model(plain_pair.inputs, start_at_layer=2, residual=residual)[:, -1, 5].sum().backward()
    assert len(seen) == 1 and seen[0].abs().max() > 0
