"""Speed and exactness of the shared-prefix engine against whole Hugging Face forwards.

    python tests/benchmarks/bench_engine.py [--quick] [--threads N] [--rounds N]

Model: random LLaVA-shaped decoder, d_model 512, 12 layers, 8 heads, d_mlp 1376, vocabulary 4096; 16 system +
576 image + 32 suffix tokens; head masks i.i.d. Bernoulli(0.5).

Naive: the unmodified Hugging Face model, eager attention, one whole forward per mask, all logits; a forward
pre-hook on every ``self_attn`` installs a per-head 4-D additive mask. Image features are computed beforehand
for both. Methods are interleaved in one run; medians over rounds, in wall-clock and in CPU time per mask.

Writes build/bench_engine.json; exits 1 below 20x or above 1e-4 difference.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmlens.engine import PrefixRuns  # noqa: E402
from mmlens.inputs import Inputs  # noqa: E402
from mmlens.metrics import answer_ids, as_metric  # noqa: E402
from mmlens.model import HookedVLM  # noqa: E402

N_LAYERS, N_HEADS, D_MODEL, D_MLP, D_VOCAB = 12, 8, 512, 1376, 4096
N_SYSTEM, GRID, N_SUFFIX = 16, 24, 32
IMAGE_ID = D_VOCAB - 1
NAIVE = "naive HF hooks, knockout"
Run = Callable[[torch.Tensor], torch.Tensor]
REQUIRED_RATIO, ALLOWED_DIFFERENCE = 20.0, 1e-4


def build() -> tuple[LlavaForConditionalGeneration, HookedVLM, Inputs]:
    text = LlamaConfig(
        vocab_size=D_VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS,
        max_position_embeddings=2048,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=GRID,
        patch_size=1,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID)
    torch.manual_seed(0)
    hf = LlavaForConditionalGeneration._from_config(config, attn_implementation="eager", dtype=torch.float32)
    hf = hf.eval().requires_grad_(False)
    model = HookedVLM.from_hf(hf)
    words = torch.randint(3, IMAGE_ID, (1, N_SYSTEM + N_SUFFIX))
    image = torch.full((1, GRID**2), IMAGE_ID)
    ids = torch.cat([words[:, :N_SYSTEM], image, words[:, N_SYSTEM:]], dim=1)
    pixels = torch.randn(1, 3, GRID, GRID)
    inputs = model.prepare({"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels})
    return hf, model, replace(model.encode_images(inputs), answer_ids=torch.tensor([7]))


class Naive:
    """What scripts do: the whole model per mask, a 4-D mask per layer."""

    def __init__(self, hf: LlavaForConditionalGeneration, model: HookedVLM, inputs: Inputs) -> None:
        self.hf, self.inputs = hf, inputs
        self.answer = int(answer_ids(inputs)[0])
        with torch.no_grad():
            self.embeds = model.embed_inputs(inputs)
        n, closed = inputs.n_pos, torch.finfo(torch.float32).min
        self.causal = torch.full((n, n), closed).triu(1).expand(1, N_HEADS, n, n)
        image = inputs.image_mask[0]
        text = torch.arange(n) > int(image.nonzero()[-1, 0])
        self.image_edges = (text[:, None] & image[None, :]).expand(1, N_HEADS, n, n)
        self.closed = closed

    def __call__(self, masks: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.one(mask) for mask in masks])

    @torch.no_grad()
    def one(self, mask: torch.Tensor) -> torch.Tensor:
        handles = []
        for layer, keep in zip(self.hf.model.language_model.layers, mask, strict=True):
            handles.append(
                layer.self_attn.register_forward_pre_hook(self.hook(keep), with_kwargs=True, prepend=True)
            )
        try:
            logits = self.hf(inputs_embeds=self.embeds, attention_mask=self.inputs.attention_mask).logits
        finally:
            for handle in handles:
                handle.remove()
        return logits[0, -1, self.answer].double()

    def hook(self, keep: torch.Tensor) -> Callable[..., Any]:
        def install(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            closed = self.image_edges & ~keep[None, :, None, None]
            return args, kwargs | {"attention_mask": self.causal.masked_fill(closed, self.closed)}

        return install


def timed(run: Run, masks: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    values = run(masks)
    return (
        values,
        (time.perf_counter() - wall) / len(masks) * 1e3,
        (time.process_time() - cpu) / len(masks) * 1e3,
    )


def gemm_rate() -> float:
    a, b = torch.randn(1024, 512), torch.randn(512, 2752)
    torch.mm(a, b)
    started = time.perf_counter()
    for _ in range(20):
        torch.mm(a, b)
    return 20 * 2 * 1024 * 512 * 2752 / (time.perf_counter() - started) / 1e9


def methods_of(
    hf: LlavaForConditionalGeneration, model: HookedVLM, inputs: Inputs
) -> tuple[dict[str, Run], float]:
    """Everything that is timed, the naive way first; and what preparing a prompt for the engine costs, in ms."""
    methods: dict[str, Run] = {NAIVE: Naive(hf, model, inputs)}
    once = []
    for baseline in ("knockout", "mean_image_tokens"):
        for batch in (16, 64):
            started = time.perf_counter()
            methods[f"engine, {baseline}, B={batch}"] = PrefixRuns(
                model, inputs, metric=as_metric("logit"), baseline=baseline, batch_size=batch
            )
            once.append((time.perf_counter() - started) * 1e3)
    return methods, statistics.median(once)


def interleaved(methods: dict[str, Run], counts: dict[str, int], rounds: int) -> dict[str, Any]:
    """Wall and CPU milliseconds per mask of every method in every round, and the metric of the last one."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(max(counts.values()), N_LAYERS, N_HEADS, generator=generator) < 0.5
    found: dict[str, Any] = {"wall": {}, "cpu": {}, "values": {}, "gemm": []}
    for run in methods.values():
        run(masks[:2])  # warm up
    for _ in range(rounds):
        found["gemm"].append(gemm_rate())
        for name, run in methods.items():
            found["values"][name], wall, cpu = timed(run, masks[: counts[name]])
            found["wall"].setdefault(name, []).append(wall)
            found["cpu"].setdefault(name, []).append(cpu)
    return found


def rows_of(found: dict[str, Any], n_naive: int) -> list[dict[str, Any]]:
    def ratio(kind: str, name: str) -> float:
        pairs = zip(found[kind][NAIVE], found[kind][name], strict=True)
        return statistics.median(naive / one for naive, one in pairs)

    rows = []
    for name, values in found["values"].items():
        compared = name.startswith("engine, knockout")
        rows.append(
            {
                "method": name,
                "ms_per_mask": statistics.median(found["wall"][name]),
                "cpu_ms_per_mask": statistics.median(found["cpu"][name]),
                "ratio": ratio("wall", name),
                "cpu_ratio": ratio("cpu", name),
                "max_difference": float((values[:n_naive] - found["values"][NAIVE]).abs().max())
                if compared
                else None,
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="two rounds, few masks")
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: torch's own)")
    parser.add_argument("--rounds", type=int, default=None, help="interleaved rounds (default 5, quick 2)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rounds = options.rounds or (2 if options.quick else 5)
    n_naive, n_engine = (1, 64) if options.quick else (3, 128)

    methods, once = methods_of(*build())
    found = interleaved(methods, {name: n_naive if name == NAIVE else n_engine for name in methods}, rounds)
    report = {
        "rows": rows_of(found, n_naive),
        "once_per_prompt_ms": once,
        "gemm_gflops": statistics.median(found["gemm"]),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "masks": {"naive": n_naive, "engine": n_engine},
        "torch": torch.__version__,
        "logit_spread": float(found["values"]["engine, knockout, B=64"].std()),
    }
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "bench_engine.json").write_text(json.dumps(report, indent=2))
    write_table(report)
    best = max(row["ratio"] for row in report["rows"])
    worst = max(row["max_difference"] or 0.0 for row in report["rows"])
    return 0 if best >= REQUIRED_RATIO and worst <= ALLOWED_DIFFERENCE else 1


def write_table(report: dict[str, Any]) -> None:
    lines = [f"{'method':<36}{'ms/mask':>9}{'CPU ms':>9}{'ratio':>8}{'CPU':>8}{'max |diff|':>12}"]
    for row in report["rows"]:
        difference = "" if row["max_difference"] is None else f"{row['max_difference']:.1e}"
        lines.append(
            f"{row['method']:<36}{row['ms_per_mask']:>9.1f}{row['cpu_ms_per_mask']:>9.1f}{row['ratio']:>7.1f}x"
            f"{row['cpu_ratio']:>7.1f}x{difference:>12}"
        )
    lines.append(
        f"once per prompt: {report['once_per_prompt_ms']:.0f} ms; threads {report['threads']}, GEMM "
        f"{report['gemm_gflops']:.0f} GFLOP/s, logits' spread {report['logit_spread']:.2f}; medians of "
        f"{report['rounds']} interleaved rounds"
    )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
