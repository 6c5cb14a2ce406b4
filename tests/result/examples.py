"""Small made-up results for the tests of results, plots and reports: a plausible model and a random one."""

import numpy as np
import xarray as xr

from mmlens.result import (
    AccuracyResult,
    AttributionResult,
    FaithfulnessResult,
    HeadScoreResult,
    InteractionResult,
    MapSimilarityResult,
    PlantedTruth,
    PooledAttributionResult,
    RecoveryResult,
    RunInfo,
    image_variables,
    token_variables,
)

N_LAYERS, N_HEADS, GRID = 6, 4, 8
QUESTION = "What is the main object in the image?"
COLOURS = {"circle": (200, 60, 40), "square": (40, 90, 190), "triangle": (60, 150, 70)}
METHODS = ["head attribution", "single-head ablation", "attention weight"]
ATTRIBUTION_ATTRS = {
    "metric": "logit difference",
    "unit": "logit",
    "baseline": "mean_image_tokens",
    "estimator": "least squares",
    "design": "Bernoulli, keep 0.5, antithetic pairs",
}


def run_info(model_id: str = "scenes") -> RunInfo:
    return RunInfo.collect(
        model_id=model_id,
        weight_fingerprint=f"9f2c5d1e77aa-{model_id}",
        dtype="float32",
        device="cpu",
        attn_implementation="shared prefix",
        threads=1,
        batch_size=64,
        seed=0,
        image_sha256=["00" * 32],
        prompts=[QUESTION],
        command="mmlens attribute cat.png --question 'What is the main object?' --out report.html",
        settings={"baseline": "mean_image_tokens", "n_masks": 512, "keep": 0.5},
        seconds=12.34,
    )


def scene(name: str, side: int = 112) -> np.ndarray:
    """A coloured shape on a grey gradient: uint8 [side, side, 3]."""
    grey = np.linspace(150, 225, side)
    image = np.repeat(np.tile(grey, (side, 1))[..., None], 3, axis=2)
    row, col = np.mgrid[:side, :side] / side
    inside = {
        "circle": (row - 0.4) ** 2 + (col - 0.6) ** 2 < 0.05,
        "square": (abs(row - 0.55) < 0.22) & (abs(col - 0.4) < 0.22),
        "triangle": (row > 0.25) & (row < 0.8) & (abs(col - 0.5) < (row - 0.25) / 2),
    }[name]
    image[inside] = COLOURS[name]
    return image.astype(np.uint8)


def cell_boxes(side: int = 112, grid: int = GRID) -> np.ndarray:
    """Pixel box of every cell [row, col, 4] of a square image."""
    edges = np.linspace(0, side, grid + 1)
    left, top = np.meshgrid(edges[:-1], edges[:-1])
    right, bottom = np.meshgrid(edges[1:], edges[1:])
    return np.stack([left, top, right, bottom], axis=-1)


def attribution_data(n: int = 3, *, random: bool = False, seed: int = 0) -> xr.Dataset:
    """Attributions of ``n`` samples: a few strong middle heads, or noise for a random model."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(0, 0.03, (n, N_LAYERS, N_HEADS))
    if not random:
        theta[:, 3, 1] += 1.4
        theta[:, 2, 2] += 0.8
        theta[:, 4, 0] += 0.5
        theta[:, 1, 3] -= 0.4
    half = 0.08 + 0.02 * rng.random(theta.shape)
    noise = 0.5 if random else 0.1
    measured = rng.normal(1.0, 0.6, (n, 40))
    predicted = measured + rng.normal(0, noise, measured.shape)
    return xr.Dataset(
        {
            "theta": (("sample", "layer", "head"), theta),
            "interval": (("sample", "layer", "head", "bound"), np.stack([theta - half, theta + half], -1)),
            "r2": ("sample", rng.uniform(0.02, 0.2, n) if random else rng.uniform(0.88, 0.97, n)),
            "heldout_pearson": ("sample", rng.uniform(0.1, 0.4, n) if random else rng.uniform(0.95, 0.99, n)),
            "split_half": ("sample", rng.uniform(0.9, 0.99, n)),
            "intercept": ("sample", np.full(n, -0.3)),
            "clean": ("sample", theta.sum((1, 2)) - 0.3),
            "ablated": ("sample", np.full(n, -0.28)),
            "n_masks": ("sample", np.full(n, 512)),
            "heldout_measured": (("sample", "mask"), measured),
            "heldout_predicted": (("sample", "mask"), predicted),
        },
        attrs=ATTRIBUTION_ATTRS,
    )


def with_drawings(data: xr.Dataset, seed: int = 1) -> xr.Dataset:
    """Adds questions, answers, images with cell weights, and tokens."""
    rng = np.random.default_rng(seed)
    names = [list(COLOURS)[i % 3] for i in range(data.sizes["sample"])]
    weights = []
    for name in names:
        coloured = np.ptp(scene(name).astype(int), axis=2) > 30
        share = coloured.reshape(GRID, 112 // GRID, GRID, 112 // GRID).mean((1, 3))
        weights.append(share * 0.4 - 0.03 + rng.normal(0, 0.02, share.shape))
    size = (112, 112)
    data = data.assign(
        image_variables(
            images=[scene(name) for name in names], boxes=[cell_boxes() for _ in names], weights=weights
        )
    )
    assert data["image"].shape[1:3] == size
    tokens = [
        "<s>",
        "USER",
        ":",
        *["<image>"] * GRID**2,
        "What",
        " is",
        " the",
        " object",
        "?",
        "ASSISTANT",
        ":",
    ]
    roles = ["system"] * 3 + ["image"] * GRID**2 + ["question"] * 5 + ["role", "final"]
    data = data.assign(token_variables(tokens=[tokens] * len(names), roles=[roles] * len(names)))
    return data.assign_coords(
        sample=[f"scene-{i}" for i in range(len(names))],
        question=("sample", [QUESTION] * len(names)),
        answer=("sample", names),
        foil=("sample", [list(COLOURS)[(i + 1) % 3] for i in range(len(names))]),
        model_answer=("sample", names),
    )


def attribution(n: int = 3, *, random: bool = False, drawings: bool = True) -> AttributionResult:
    data = attribution_data(n, random=random, seed=7 if random else 0)
    return AttributionResult(
        data=with_drawings(data) if drawings else data,
        info=run_info("random weights" if random else "scenes"),
    )


def pooled_attribution(n: int = 3) -> PooledAttributionResult:
    """The mean map of ``attribution`` as one that all prompts share."""
    whole = attribution_data(n)
    kept = ["r2", "heldout_pearson", "intercept", "clean", "ablated", "n_masks", "heldout_measured"]
    data = whole[[*kept, "heldout_predicted"]].assign(
        theta=whole["theta"].mean("sample"),
        interval=whole["interval"].mean("sample"),
        slope=("sample", np.linspace(0.5, 1.5, n)),
        split_half=((), 0.9),
        reliability=((), 0.95),
    )
    return PooledAttributionResult(data=data, info=run_info())


def interactions(n: int = 3) -> InteractionResult:
    """Three pairs: two heads that stand in for each other, two that need each other, two that do neither."""
    values = np.array([-2.0, 0.01, 0.7]) + np.linspace(-0.1, 0.1, n)[:, None]
    data = xr.Dataset(
        {
            "interaction": (("sample", "pair"), values),
            "interval": (("sample", "pair", "bound"), np.stack([values - 0.2, values + 0.3], -1)),
            "n_masks": ("sample", np.full(n, 256)),
        },
        coords={
            "first_layer": ("pair", [2, 2, 3]),
            "first_head": ("pair", [1, 1, 4]),
            "second_layer": ("pair", [3, 4, 4]),
            "second_head": ("pair", [4, 6, 6]),
        },
        attrs={"metric": "logit", "unit": "logit", "baseline": "mean_image_tokens", "design": "antithetic"},
    )
    return InteractionResult(data=data, info=run_info())


def head_score(method: str = "attention weight", n: int = 3) -> HeadScoreResult:
    rng = np.random.default_rng(3)
    score = rng.gamma(1.0, 0.1, (n, N_LAYERS, N_HEADS))
    data = xr.Dataset(
        {"score": (("sample", "layer", "head"), score)},
        attrs={"method": method, "unit": "share of attention", "sign": "positive = reads the image"},
    )
    return HeadScoreResult(data=data, info=run_info())


def faithfulness(n: int = 3, *, random: bool = False) -> FaithfulnessResult:
    rng = np.random.default_rng(5)
    sizes = np.array([0, 1, 2, 3, 4, 6, 8, 12, 16, 20, 24])
    share = sizes / sizes[-1]
    powers = [0.9, 1.0, 1.1] if random else [0.2, 0.4, 0.9]
    curves = np.stack([share**power for power in powers])[:, None].repeat(n, 1)
    curves = curves + rng.normal(0, 0.03, curves.shape)
    controls = share[None, None] ** rng.uniform(0.8, 1.3, (12, n, 1)) + rng.normal(
        0, 0.03, (12, n, len(sizes))
    )
    reach = {
        level: [
            next((s for s, v in zip(sizes, row, strict=True) if v >= level), np.nan) for row in curves.mean(1)
        ]
        for level in (0.8, 0.9)
    }
    mean = curves.mean(1)
    band = ("method", "size", "bound")
    data = xr.Dataset(
        {
            "faithfulness": (("method", "sample", "size"), curves),
            "completeness": (("method", "sample", "size"), np.clip(curves * 0.95, -1, 1)),
            "auc_faithfulness": (("method", "sample"), np.trapezoid(curves, share, axis=-1)),
            "auc_completeness": (("method", "sample"), np.trapezoid(curves * 0.95, share, axis=-1)),
            "k80": ("method", np.array(reach[0.8], float)),
            "k90": ("method", np.array(reach[0.9], float)),
            "faithfulness_interval": (band, np.stack([mean - 0.06, mean + 0.06], -1)),
            "completeness_interval": (band, np.stack([mean - 0.09, mean + 0.03], -1)),
            "random_faithfulness": (("draw", "sample", "size"), controls),
            "random_completeness": (("draw", "sample", "size"), controls * 0.9),
            "random_auc_faithfulness": (("draw", "sample"), np.trapezoid(controls, share, axis=-1)),
            "random_k80": ("draw", np.full(12, 20.0)),
        },
        coords={"method": METHODS, "size": sizes},
        attrs={"metric": "logit difference", "unit": "logit", "baseline": "mean_image_tokens"},
    )
    return FaithfulnessResult(data=data, info=run_info("random weights" if random else "scenes"))


def accuracy(*, random: bool = False) -> AccuracyResult:
    shares = np.array([[0.96, 0.14], [0.93, 0.24], [0.81, 0.33]])
    if random:
        shares = np.array([[0.11, 0.12], [0.22, 0.21], [0.3, 0.31]])
    data = xr.Dataset(
        {
            "accuracy": (("family", "condition"), shares),
            "interval": (
                ("family", "condition", "bound"),
                np.stack([shares - 0.04, np.minimum(shares + 0.04, 1)], -1),
            ),
            "majority": ("family", np.array([0.14, 0.23, 0.34])),
            "n": ("family", np.array([400, 400, 400])),
        },
        coords={"family": ["object", "colour", "count"], "condition": ["clean", "blocked"]},
        attrs={"dataset": "scenes, test split", "intervention": "text may not read the image, all layers"},
    )
    return AccuracyResult(data=data, info=run_info("random weights" if random else "scenes"))


def planted_truth(n: int = 5) -> PlantedTruth:
    """Two carriers, a relay and a decoy; ``colour`` needs both carriers, either is enough for ``count``."""
    rng = np.random.default_rng(11)
    subset = np.arange(8)
    first, second, _decoy = (subset >> player & 1 for player in range(3))
    games = np.stack([2.0 * first, 3.0 * first * second, 1.5 * (first | second)])  # [family, subset]
    spread = rng.uniform(0.8, 1.2, (3, n, 1)) * games[:, None] + rng.normal(0, 0.2, (3, n, 1))
    full = np.array([0.95, 0.9, 0.85])
    chance = np.array([0.14, 0.23, 0.34])
    accuracy = chance[:, None] + (full - chance)[:, None] * games / games.max(axis=1, keepdims=True)
    return PlantedTruth.from_arrays(
        value=np.stack([spread, 0.9 * spread]),
        accuracy=np.stack([accuracy, accuracy]),
        full_accuracy=full,
        planted_only_accuracy=full,
        unplanted_only_accuracy=chance,
        chance=chance,
        heads=[(3, 1, "carrier"), (4, 0, "relay"), (2, 2, "carrier"), (1, 3, "decoy")],
        baselines=["mean_image_tokens", "knockout"],
        families=["object", "colour", "count"],
        n_layers=N_LAYERS,
        n_heads=N_HEADS,
        info=run_info("planted"),
    )


def recovery_result() -> RecoveryResult:
    """Three methods: one with samples and the exact values' unit, one with samples, one map of neither."""
    used = np.zeros((N_LAYERS, N_HEADS), int)
    used[3, 1] = used[2, 2] = 1
    shares = {
        "auroc": [1.0, 0.9, 0.5],
        "average_precision": [1.0, 0.6, 2 / 24],
        "recovered_at_k": [1.0, 0.5, 2 / 24],
        "correlation": [0.98, 0.4, np.nan],
        "rank_correlation": [0.7, 0.3, np.nan],
        "error": [0.1, np.nan, np.nan],
    }
    variables = {name: ("method", np.array(values)) for name, values in shares.items()}
    for name, values in shares.items():
        ends = np.stack([np.array(values) - 0.05, np.minimum(np.array(values) + 0.02, 1)], -1)
        variables[f"{name}_interval"] = (("method", "bound"), np.where([[1], [1], [0]], ends, np.nan))
    data = xr.Dataset(
        variables
        | {
            "exact_recovery": ("method", np.array([1, 0, 0])),
            "comparable": ("method", np.array([1, 0, 0])),
            "n_samples": ("method", np.array([8, 8, 1])),
            "exact_value": (("layer", "head"), 1.5 * used),
            "in_use": (("layer", "head"), used),
        },
        coords={"method": METHODS},
        attrs={
            "family": "colour",
            "baseline": "mean_image_tokens",
            "index": "shapley",
            "metric": "logit",
            "unit": "logit",
        },
    )
    return RecoveryResult(data=data, info=run_info("planted"))


def map_similarity(cosine: np.ndarray | None = None) -> MapSimilarityResult:
    """Three groups; colour and count are the least apart. Or groups with other cosines, for what must fail."""
    if cosine is None:
        cosine = np.array([[0.9, 0.3, 0.2], [0.3, 0.8, 0.5], [0.2, 0.5, 0.7]])
    names = np.array(["object", "colour", "count", "box"][: len(cosine)], dtype=object)
    first, second = np.triu_indices(len(cosine), k=1)
    gap = (cosine[first, first] + cosine[second, second]) / 2 - cosine[first, second]
    data = xr.Dataset(
        {
            "cosine": (("group", "group_other"), cosine),
            "cosine_interval": (
                ("group", "group_other", "bound"),
                np.stack([cosine - 0.1, np.minimum(cosine + 0.05, 1)], -1),
            ),
            "n": ("group", np.full(len(cosine), 24)),
            "first": ("pair", names[first]),
            "second": ("pair", names[second]),
            "gap": ("pair", gap),
            "gap_interval": (("pair", "bound"), np.stack([gap - 0.1, gap + 0.1], -1)),
            "p_value": ("pair", np.full(len(gap), 0.001)),
        },
        coords={"group": names, "group_other": names},
        attrs={"score": "head attribution of the logit"},
    )
    return MapSimilarityResult(data=data, info=run_info())
