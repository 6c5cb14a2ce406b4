"""Does every hook point fire, and does writing it change the logits?

For each hook point, one at a time:
1. watch it: it must fire, and watching alone may change the logits by rounding only,
2. write it through the returned tensor: the logits must change,
3. write it in place, the idiom of many TransformerLens notebooks: the logits must become those of step 2.

A hook point that fails is worse than none: the edit seems to work and the conclusion drawn from it is false.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mmlens.errors import InterventionDidNothing, ReadOnlyHook
from mmlens.inputs import Inputs
from mmlens.model.caching import NamesFilter, matching_names
from mmlens.model.hooked_vlm import HookedVLM
from mmlens.reference.parity import explicit_attention

if TYPE_CHECKING:
    import pandas as pd

EFFECT_THRESHOLD = 1e-4
WATCH_TOLERANCE = 1e-5
_N_QUIET = 200  # fewer hook points than this need no progress bar


@final
@dataclass(frozen=True, kw_only=True)
class CensusEntry:
    """What one hook point does.

    Attributes:
        hook_name: full name.
        shape: of the activation; empty if it did not fire.
        fired: whether it fired at all.
        watch_effect: largest ``|Δlogit|`` that watching alone makes (another attention kernel may run).
        write_effect: largest ``|Δlogit|`` that a write makes, against the watched run.
        in_place_difference: largest ``|Δlogit|`` between the same write made in place and by returning it.
        read_only: whether the hook point refuses writes.
        tolerance: largest ``|Δlogit|`` that counts as rounding.
    """

    hook_name: str
    shape: tuple[int, ...] = ()
    fired: bool = False
    watch_effect: float = 0.0
    write_effect: float = 0.0
    in_place_difference: float = 0.0
    read_only: bool = False
    tolerance: float = WATCH_TOLERANCE

    @property
    def verdict(self) -> str:
        """``live``, ``read-only``, or what is wrong."""
        if not self.fired:
            return "never fires"
        if self.watch_effect > self.tolerance:
            return "watching changes the logits"
        if self.read_only:
            return "read-only"
        if self.write_effect < EFFECT_THRESHOLD:
            return "writing does nothing"
        if self.in_place_difference > self.tolerance:
            return "in-place writes differ"
        return "live"

    @property
    def ok(self) -> bool:
        """True if live, or openly read-only."""
        return self.verdict in ("live", "read-only")


@final
@dataclass(frozen=True, kw_only=True)
class CensusReport:
    """All hook points that were examined, in model order."""

    entries: tuple[CensusEntry, ...]

    @property
    def ok(self) -> bool:
        """True if every hook point is live or openly read-only."""
        return all(entry.ok for entry in self.entries)

    @property
    def failures(self) -> tuple[CensusEntry, ...]:
        """The entries that are neither."""
        return tuple(entry for entry in self.entries if not entry.ok)

    def summary(self) -> str:
        """One line: how many are live, read-only, failing."""
        n_read_only = sum(entry.verdict == "read-only" for entry in self.entries)
        n_live = sum(entry.verdict == "live" for entry in self.entries)
        text = f"{n_live} of {len(self.entries)} hook points live, {n_read_only} read-only"
        return text + "".join(f"; {entry.hook_name}: {entry.verdict}" for entry in self.failures)

    def to_pandas(self) -> "pd.DataFrame":
        """One row a hook point."""
        import pandas as pd

        columns = ("hook_name", "shape", "watch_effect", "write_effect", "in_place_difference", "verdict")
        return pd.DataFrame(
            [{column: getattr(entry, column) for column in columns} for entry in self.entries]
        )

    def __str__(self) -> str:
        width = max((len(entry.hook_name) for entry in self.entries), default=0)
        rows = [
            f"{entry.hook_name:<{width}}  {entry.write_effect:9.2e}  {entry.watch_effect:9.2e}  "
            f"{entry.verdict:<12}  {'×'.join(map(str, entry.shape))}"
            for entry in self.entries
        ]
        header = f"{'hook point':<{width}}  {'written':>9}  {'watched':>9}  {'verdict':<12}  shape"
        return "\n".join([header, *rows, self.summary()])


@torch.no_grad()
def census(
    model: HookedVLM,
    inputs: Inputs,
    *,
    names: NamesFilter = None,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> CensusReport:
    """Examines hook points one by one: three forward passes each, so choose ``layers`` on a large model.

    Args:
        model: any; left without hooks of this function.
        inputs: prompts with pixels, so that tower and projector run.
        names: a hook name, several, or a predicate; None is every hook point.
        layers: layers of decoder and tower to examine (those outside layers always are); None is all. Numbers
            beyond the tower's depth are left out there.
        seed: of the values written.
    """
    chosen = _chosen(model, names, layers)
    clean = _real(model(inputs), inputs)
    with explicit_attention(model):  # hooks on attention select another kernel, whose rounding is no failure
        rounding = _distance(_real(model(inputs), inputs), clean)
    tolerance = max(WATCH_TOLERANCE, 4 * rounding)
    entries = [
        _examine(model, inputs, name, clean, seed, tolerance)
        for name in tqdm(chosen, desc="census", unit="hook", disable=len(chosen) < _N_QUIET)
    ]
    return CensusReport(entries=tuple(entries))


def _chosen(model: HookedVLM, names: NamesFilter, layers: Sequence[int] | None) -> list[str]:
    chosen = matching_names(names or (lambda name: True), list(model.hook_dict))
    return [name for name in chosen if layers is None or _layer(name) is None or _layer(name) in layers]


def _layer(hook_name: str) -> int | None:
    parts = hook_name.split(".")
    return int(parts[parts.index("blocks") + 1]) if "blocks" in parts else None


def _real(logits: Float[Tensor, "batch pos d_vocab"], inputs: Inputs) -> Float[Tensor, "token d_vocab"]:
    return logits[inputs.attention_mask.to(logits.device).bool()]


def _examine(
    model: HookedVLM, inputs: Inputs, name: str, clean: Tensor, seed: int, tolerance: float
) -> CensusEntry:
    shapes: list[tuple[int, ...]] = []

    def watch(tensor: Tensor, hook: Any) -> None:
        shapes.append(tuple(tensor.shape))

    def write(tensor: Tensor, hook: Any) -> Tensor:
        return perturbed(tensor, name, seed)

    def write_in_place(tensor: Tensor, hook: Any) -> Tensor:
        return tensor.copy_(perturbed(tensor, name, seed))

    try:
        watched = _run(model, inputs, name, watch)
    except InterventionDidNothing:
        return CensusEntry(hook_name=name)
    effect = _distance(watched, clean)
    seen = CensusEntry(hook_name=name, shape=shapes[0], fired=True, watch_effect=effect, tolerance=tolerance)
    try:
        written = _run(model, inputs, name, write)
    except ReadOnlyHook:
        return replace(seen, read_only=True)
    return replace(
        seen,
        write_effect=_distance(written, watched),
        in_place_difference=_distance(_run(model, inputs, name, write_in_place), written),
    )


def _run(
    model: HookedVLM, inputs: Inputs, name: str, hook_fn: Callable[..., Any]
) -> Float[Tensor, "token d_vocab"]:
    return _real(model.run_with_hooks(inputs, fwd_hooks=[(name, hook_fn)]), inputs)


def _distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def perturbed(tensor: Tensor, hook_name: str, seed: int) -> Tensor:
    """New values for an activation that any live hook point must feel.

    Every element changes by another amount, because a softmax ignores a shift common to its row and a norm a
    common factor. Closed attention edges stay closed; patterns and divisors stay positive.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(tensor.shape, generator=generator).to(tensor)
    if hook_name.endswith("hook_attn_scores"):
        return torch.where(tensor > torch.finfo(tensor.dtype).min / 2, tensor + noise, tensor)
    if hook_name.endswith(("hook_pattern", "hook_scale")):
        return tensor * (1 + noise.abs())
    return 0.5 * tensor + noise * tensor.float().std().to(tensor)
