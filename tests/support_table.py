"""Writes the table of supported families, measured: ``python -m tests.support_table`` writes docs/support.md.

For every variant of the zoo: ``mmlens verify`` on a randomised tiny model, and whether the prefix engine runs.
"""

from dataclasses import dataclass
from pathlib import Path

import typer

from mmlens.config import ModelConfig
from mmlens.engine.prefix import check_attention
from mmlens.errors import EngineNotExact
from mmlens.reference import VerifyReport, verify
from tests.zoo import VARIANTS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "support.md"
_HEAD = """# Supported families

Every row is a randomised tiny model of that family, held against the unmodified Hugging Face model by `mmlens
verify`; `python -m tests.support_table` measures all of them again and writes this page, and the tests fail if it is
out of date.

- **Δ logits**: largest difference to Hugging Face's eager attention in float32, attention computed step by step in
  both; 0 is bit-equal. With the fused kernel, which runs by default, differences are those of its rounding (about
  10⁻⁶ to 10⁻⁵).
- **checks**: everything `mmlens verify` looks at: a left-padded batch, two images a prompt, interventions over the
  prompt and in cached decoding, gradients, generation with and without a cache and as Hugging Face generates, and the
  same intervention three ways (mmlens, Hugging Face's attention registry, nnsight).
- **hook points**: of decoder, projector and tower; each fires, and writing it changes the logits.
- **prefix engine**: whether head masks run on the shared-prefix engine, sliding windows included.

"""
_TAIL = """
Mllama and Gemma 4 are not converted: cross-attention instead of image tokens, and keys and values that layers share,
do not fit the decoder. Their unmodified Hugging Face models run under the same hook names:
`mmlens.reference.HookedReference`.

Real checkpoints of these families were not at hand where this table is made: architecture, packing and numerics are
proven on tiny models with the families' own processors; tokenisers and configurations of released weights are not.
`mmlens verify PATH` does the same on any local checkpoint.
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant.

    Attributes:
        family: which family it belongs to.
        variant: its name in the zoo.
        parity: largest ``|Δlogit|`` over the batches, attention computed step by step.
        checks: checks that held, and how many there are.
        hooks: hook points examined.
        census_failures: hook points that do not fire or do nothing.
        engine: "yes", or what stands in the way.
    """

    family: str
    variant: str
    parity: float
    checks: tuple[int, int]
    hooks: int
    census_failures: int
    engine: str


def row_of(name: str, report: VerifyReport) -> Row:
    """The row of a variant from its report."""
    return Row(
        family=VARIANTS[name].family,
        variant=name,
        parity=max(parity.explicit_difference for parity in report.parities),
        checks=(len(report.checks) - len(report.failures), len(report.checks)),
        hooks=len(report.census.entries),
        census_failures=len(report.census.failures),
        engine=_engine(name),
    )


def _engine(name: str) -> str:
    cfg = ModelConfig.from_hf(VARIANTS[name].config())
    if not cfg.is_multimodal:
        return "no: no image"
    try:
        check_attention(cfg)
    except EngineNotExact:
        return "no: prefix-LM"
    return "yes"


def shown(row: Row) -> str:
    """The row as Markdown cells; figures that rounding may move from machine to machine are shown by their bound."""
    parity = "0" if row.parity == 0 else "≤ 10⁻⁵" if row.parity <= 1e-5 else f"{row.parity:.1e}"
    cells = (row.family, f"`{row.variant}`", parity, f"{row.checks[0]} of {row.checks[1]}")
    return " | ".join((*cells, f"{row.hooks - row.census_failures} of {row.hooks}", row.engine))


def main() -> None:
    """Measures every variant and writes the page."""
    lines = [
        "| family | variant | Δ logits | checks | hook points live | prefix engine |",
        "|---|---|---|---|---|---|",
    ]
    for name, variant in VARIANTS.items():
        if not variant.reference_only:
            row = shown(row_of(name, verify(variant.model())))
            typer.echo(row)
            lines.append(f"| {row} |")
    PAGE.write_text(_HEAD + "\n".join(lines) + "\n" + _TAIL, encoding="utf-8")


if __name__ == "__main__":
    main()
