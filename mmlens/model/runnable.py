"""How a model is run: with hooks, with a cache, under interventions, token by token.

``Runnable`` holds the methods; what they do stands in ``run.py`` and ``generate.py``.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor
from transformer_lens import ActivationCache, HookedRootModule

from mmlens.inputs import Inputs
from mmlens.inputs.selectors import Selector
from mmlens.interventions import Intervention
from mmlens.interventions.sites import HeadSelector
from mmlens.model import generate as generation
from mmlens.model import run as running
from mmlens.model.caching import NamesFilter, unknown_hook

if TYPE_CHECKING:
    from mmlens.model.hooked_vlm import HookedVLM

HookList = Sequence[tuple[str | Callable[[str], bool], Callable[..., Any]]]


class Runnable(HookedRootModule):
    """Base of a hooked model: every way to run it that is not a bare forward pass."""

    @abstractmethod
    def as_inputs(self, inputs: Any, batch_feature: Mapping[str, Any]) -> Inputs:
        """What every run method accepts, as ``Inputs``."""

    @property
    def _vlm(self) -> "HookedVLM":
        return cast("HookedVLM", self)

    @contextmanager
    def hooks(
        self,
        fwd_hooks: HookList = (),
        bwd_hooks: HookList = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator["Runnable"]:
        """Attaches hooks for the length of a ``with`` block, as in TransformerLens.

        Args:
            fwd_hooks: ``(name or predicate, fn(tensor, hook))``; ``fn`` may return a replacement.
            bwd_hooks: the same for gradients.
            reset_hooks_end: whether to remove them at the end.
            clear_contexts: whether to clear the hook points' ``ctx`` too.

        Raises:
            UnknownHook: a name matches no hook point. Nothing is attached then.
        """
        for name, _ in (*fwd_hooks, *bwd_hooks):
            self.hook_names(name)
        with super().hooks(list(fwd_hooks), list(bwd_hooks), reset_hooks_end, clear_contexts):
            yield self

    def hook_names(self, name: str | Callable[[str], bool]) -> list[str]:
        """Hook points that a name or predicate means; UnknownHook if none."""
        if callable(name):
            chosen = [n for n in self.hook_dict if name(n)]
            if not chosen:
                raise unknown_hook(getattr(name, "__name__", repr(name)), self.hook_dict)
            return chosen
        if name not in self.hook_dict:
            raise unknown_hook(name, self.hook_dict)
        return [name]

    def run_with_hooks(  # type: ignore[override]
        self,
        inputs: Any = None,
        *,
        fwd_hooks: HookList = (),
        bwd_hooks: HookList = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **forward_options: Any,
    ) -> Tensor:
        """:meth:`forward` with temporary hooks; see :meth:`hooks`.

        For backward hooks pass ``reset_hooks_end=False`` and call ``reset_hooks()`` after the backward pass, or
        run inside ``with model.hooks(bwd_hooks=…)``.

        Raises:
            InterventionDidNothing: a forward hook never fired (its hook point lies outside the layers that ran).
        """
        return running.run_with_hooks(
            self._vlm, inputs, fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts, forward_options
        )

    def run_with_cache(  # type: ignore[override]
        self,
        inputs: Any = None,
        *,
        names_filter: NamesFilter = None,
        pos: Selector | None = None,
        heads: HeadSelector = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        remove_batch_dim: bool = False,
        **forward_options: Any,
    ) -> tuple[Tensor, ActivationCache]:
        """:meth:`forward`, and the activations it passed through.

        Args:
            inputs: as in :meth:`forward`.
            names_filter: a hook name, several, or a predicate; None is every hook point but ``hook_result``.
            pos: position selector; decoder activations keep only these positions (for scores and patterns,
                these queries). Taken inside the hook, so the rest is never stored.
            heads: query heads to keep, the same for each layer or as ``(layer, head)`` pairs.
            device: where to keep the activations; None leaves them.
            dtype: dtype to keep them in; None leaves it.
            remove_batch_dim: drop the batch axis of a single sample.
            forward_options: further arguments of :meth:`forward`.
        """
        cached = running.run_with_cache(
            self._vlm,
            inputs,
            forward_options,
            names_filter=names_filter,
            pos=pos,
            heads=heads,
            device=device,
            dtype=dtype,
        )
        if remove_batch_dim:
            cached[1].remove_batch_dim()
        return cached

    def run(
        self,
        inputs: Any,
        interventions: Sequence[Intervention] | Intervention = (),
        *,
        record: NamesFilter | Literal[False] = False,
        pos: Selector | None = None,
        heads: HeadSelector = None,
        strict: bool = True,
        **forward_options: Any,
    ) -> "running.Run":
        """Runs under interventions.

        Args:
            inputs: as in :meth:`forward`.
            interventions: what to do, in order.
            record: hook names to record (after the interventions), as in :meth:`run_with_cache`; False for none.
            pos: positions to record.
            heads: heads to record.
            strict: raise InterventionDidNothing for an intervention that changed no element.
            forward_options: further arguments of :meth:`forward`.
        """
        return running.run(
            self._vlm,
            inputs,
            interventions,
            forward_options,
            record=record,
            pos=pos,
            heads=heads,
            strict=strict,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: Any = None,
        interventions: Sequence[Intervention] | Intervention = (),
        *,
        max_new_tokens: int = 20,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
        strict: bool = True,
        **batch_feature: Any,
    ) -> "generation.Generation":
        """Continues the prompts, with interventions holding at every step.

        Args:
            inputs: as in :meth:`forward`.
            interventions: as in :meth:`run`; they mean the same with and without the key-value cache.
            max_new_tokens: tokens to add at most.
            do_sample: draw tokens instead of taking the likeliest.
            temperature: divides the logits before drawing.
            top_k: draw among the k likeliest only.
            top_p: draw among the likeliest that together reach this probability.
            generator: source of randomness; required to sample.
            use_cache: keep keys and values between steps.
            strict: as in :meth:`run`.
            batch_feature: a processor's tensors as keywords, instead of ``inputs``.
        """
        sampling = generation.Sampling(
            do_sample=do_sample, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
        )
        return generation.generate(
            self._vlm,
            self.as_inputs(inputs, batch_feature),
            interventions,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            use_cache=use_cache,
            strict=strict,
        )
