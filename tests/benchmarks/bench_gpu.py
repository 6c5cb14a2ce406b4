"""The engine on a GPU at the size of a real model: masks per second, share of the GPU's rate, peak memory.

    python tests/benchmarks/bench_gpu.py [--quick] [--rounds N] [--suffix S] [--peak-tflops P] [--compile]
    python tests/benchmarks/bench_gpu.py --tiny          # the same code on a CPU, on a small model, for a test

A decoder, tower and projector of the sizes of LLaVA-1.5-7B are made on the device, with random weights in bfloat16
(13.1 GiB); nothing is downloaded. One prompt: 35 tokens, 576 image tokens, S tokens behind them. Head masks keep a
random half of the heads; ablated heads read nothing (knockout).

Whole forwards (the plain path, one mask at a time) and the engine at several batch sizes are interleaved; the
device is waited for around every measurement. Work is what ``mmlens.recipes.engine_work`` counts. It is divided by the
time, and by the rate of matrix products of the engine's size on this device in the same round (*of GEMM*), and by
the peak that the GPU's vendor states (*utilisation*), where it is known or given. Peak memory is that of PyTorch's
allocator above the weights; on a CPU, private memory of the process.

Differences from whole forwards are those of bfloat16 sums in another order; they are printed beside the spread of the
answer's logit over masks. Writes build/bench_gpu.json and prints a table for docs/benchmarks.md. Exits 2 where there is
no CUDA device.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmlens.config import ModelConfig
from mmlens.engine import PlainRuns, PrefixRuns
from mmlens.inputs import Inputs
from mmlens.loading import typed_config
from mmlens.metrics import as_metric
from mmlens.model import HookedVLM
from mmlens.recipes.engine_work import PromptParts, executed_work, forward_work
from mmlens.recipes.memory_table import MODELS
from tests.benchmarks.timing import parser_of, read, save, say, table
from tests.measured_memory import PrivateMemory

NAME, TINY = "LLaVA-1.5-7B", "tiny"
BATCHES = (16, 32, 64, 128, None)
ANSWER, SEED = 7, 0
PEAKS = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "L40S": 362.0, "A10": 125.0, "L4": 121.0, "V100": 125.0}
"""TFLOP/s in half precision without sparsity, as vendors state them, by a word of the device's name."""
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model on its device, one prompt, and the masks."""

    model: HookedVLM
    inputs: Inputs
    parts: PromptParts
    masks: torch.Tensor

    @property
    def device(self) -> torch.device:
        return self.model.device


def tiny_config() -> dict[str, Any]:
    """LLaVA-1.5 with everything that can be small made small; 16 image tokens."""
    text = MODELS[NAME]["text_config"] | {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 256,
    }
    vision = MODELS[NAME]["vision_config"] | {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
    }
    return {"model_type": "llava", "text_config": text, "vision_config": vision, "image_token_index": 255}


def set_up(tiny: bool, n_suffix: int, n_masks: int, device: torch.device) -> Setting:
    """Random weights, pixels and words, made on the device."""
    cfg = ModelConfig.from_hf(typed_config(tiny_config() if tiny else MODELS[NAME]))
    with torch.device("meta"):
        model = HookedVLM(cfg).to(torch.float32 if tiny else torch.bfloat16)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    torch.manual_seed(SEED)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 or name.endswith("bias"):
            parameter.normal_(std=0.02)
        else:
            parameter.fill_(1.0)  # norms
    assert cfg.vision is not None and cfg.image_token_id is not None
    side, n_image, n_system = cfg.vision.image_size, cfg.vision.grid**2, 35
    words = torch.randint(3, cfg.image_token_id, (1, n_system + n_suffix))
    image = torch.full((1, n_image), cfg.image_token_id)
    ids = torch.cat([words[:, :n_system], image, words[:, n_system:]], dim=1)
    tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs = model.prepare(tensors | {"pixel_values": torch.randn(1, 3, side, side)}).to(device=device)
    inputs = replace(model.encode_images(inputs), answer_ids=torch.tensor([ANSWER]))
    return Setting(
        model=model,
        inputs=inputs,
        parts=PromptParts(n_system=n_system, n_image=n_image, n_suffix=n_suffix),
        masks=torch.rand(n_masks, cfg.n_layers, cfg.n_heads) < 0.5,
    )


# --- measuring


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    wait(device)
    started = time.perf_counter()
    found = run()
    wait(device)
    return found, time.perf_counter() - started


def gemm_rate(setting: Setting, repeats: int = 20) -> float:
    """FLOP/s of the MLP's first product for 64 masks, the best of three."""
    cfg, device = setting.model.cfg, setting.device
    rows = 64 * setting.parts.n_suffix
    options: Any = {"device": device, "dtype": setting.model.dtype}
    a, b = torch.randn(rows, cfg.d_model, **options), torch.randn(cfg.d_mlp, cfg.d_model, **options)

    def products() -> None:
        for _ in range(repeats):
            torch.nn.functional.linear(a, b)

    products()
    fastest = min(seconds_of(products, device)[1] for _ in range(3))
    return repeats * 2 * rows * cfg.d_model * cfg.d_mlp / fastest


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Memory that a run takes at its height, above what was taken before."""
    if device.type != "cuda":
        with PrivateMemory() as memory:
            run()
        return memory.peak
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    wait(device)
    return torch.cuda.max_memory_allocated(device) - before


def engines(setting: Setting, compile_layers: bool) -> dict[str, PrefixRuns]:
    options: Any = {"metric": as_metric("logit"), "baseline": "knockout"}
    if compile_layers:
        options["compile"] = True
    made = {}
    for batch in BATCHES:
        runs = PrefixRuns(setting.model, setting.inputs, batch_size=batch, **options)
        told = f"{runs.batch_size} at a time" + (" (chosen)" if batch is None else "")
        made[f"engine, {told}"] = runs
    return made


def rows_of(setting: Setting, rounds: int, n_plain: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every way, interleaved."""
    cfg, device = setting.model.cfg, setting.device
    plain = PlainRuns(
        setting.model, setting.inputs, metric=as_metric("logit"), baseline="knockout", batch_size=1
    )
    runs: dict[str, Any] = {"whole forwards": plain, **engines(setting, options.compile)}
    masks = {name: setting.masks[:n_plain] if name == "whole forwards" else setting.masks for name in runs}
    work = {
        name: forward_work(cfg, setting.parts, all_logits=False).total
        if run is plain
        else executed_work(cfg, setting.parts, masks[name], run.batch_size, on_cpu=device.type == "cpu").total
        for name, run in runs.items()
    }
    memory = {
        name: peak_bytes(lambda run=run, name=name: run(masks[name]), device) for name, run in runs.items()
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    rates, values = [], {}
    for _ in range(rounds):
        rates.append(gemm_rate(setting))
        for name, run in runs.items():
            values[name], seconds = seconds_of(lambda run=run, name=name: run(masks[name]), device)
            times[name].append(seconds / len(masks[name]))
    return [
        {
            "way": name,
            "n_masks": len(masks[name]),
            "masks_per_s": 1 / median(times[name]),
            "ratio": median([a / b for a, b in zip(times["whole forwards"], times[name], strict=True)]),
            "flop_per_mask": work[name],
            "flop_per_s": work[name] / median(times[name]),
            "of_gemm": median([work[name] / t / rate for t, rate in zip(times[name], rates, strict=True)]),
            "peak_bytes": memory[name],
            "max_difference": float((values[name][:n_plain] - values["whole forwards"]).abs().max()),
            "spread": float(values[name].std()),
        }
        for name in runs
    ]


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


# --- the command


def options_of(given: list[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__, rounds=5, quick_rounds=2)
    parser.add_argument("--tiny", action="store_true", help="a small model, on a CPU if there is no GPU")
    parser.add_argument("--suffix", type=int, default=45, help="tokens behind the image")
    parser.add_argument(
        "--peak-tflops", type=float, default=None, help="the GPU's peak (default: by its name)"
    )
    parser.add_argument("--compile", action="store_true", help="layers through torch.compile")
    return read(parser, given)


def peak_of(device: torch.device, given: float | None) -> float | None:
    """FLOP/s that the vendor states; None if not known."""
    if given is not None or device.type != "cuda":
        return None if given is None else given * 1e12
    words = torch.cuda.get_device_name(device).replace("-", " ").split()
    return next((PEAKS[word] * 1e12 for word in words if word in PEAKS), None)


def cells(row: dict[str, Any], peak: float | None) -> list[str]:
    return [
        row["way"],
        f"{row['masks_per_s']:.1f}",
        f"{row['ratio']:.1f}×",
        f"{row['flop_per_s'] / 1e12:.1f}",
        f"{row['of_gemm']:.0%}",
        "" if peak is None else f"{row['flop_per_s'] / peak:.0%}",
        f"{row['peak_bytes'] / MIB:,.0f} MiB",
        f"{row['max_difference']:.1e}",
    ]


HEADER = (
    "way",
    "masks per s",
    "ratio",
    "TFLOP/s",
    "of GEMM",
    "utilisation",
    "memory above the weights",
    "largest difference",
)


def main(given: list[str] | None = None) -> int:
    options = options_of(given)
    if not options.tiny and not torch.cuda.is_available():
        sys.stderr.write(
            "bench_gpu.py measures a model of 13.1 GiB on a CUDA device, and torch sees none "
            f"(torch {torch.__version__}). Run it on a machine with a GPU of 24 GB or more and a CUDA build of torch; "
            "--tiny runs the same code on a small model here.\n"
        )
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    n_masks, n_plain = (128, 2) if options.quick or options.tiny else (512, 8)
    with torch.no_grad():
        setting = set_up(options.tiny, options.suffix, n_masks, device)
        rows = rows_of(setting, options.rounds, n_plain, options)
    peak = peak_of(device, options.peak_tflops)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    save("bench_gpu", {"rows": rows, "device": name, "model": TINY if options.tiny else NAME, "peak": peak})
    say(
        table(HEADER, [cells(row, peak) for row in rows]),
        f"{TINY if options.tiny else NAME} shape, {str(setting.model.dtype)[6:]}, {setting.parts.n_suffix} tokens "
        f"behind the image, on {name}; torch {torch.__version__}; medians of {options.rounds} rounds. "
        f"Spread of the answer's logit over masks: {rows[-1]['spread']:.3f}.",
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
