"""``mmlens sweep`` and ``mmlens collect`` on the scenes model: on and on in one folder, whatever comes between."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command
from tests.sweeps.build import shards

QUICK = ("--option", "n_masks=128", "--option", "n_heldout=8", "--option", "metric=logit", "--no-progress")
ABLATION = ("--option", "self_check=false", "--no-progress")
SAID = "what is this ?"


def test_run_again_grow_and_collect(mmlens: Command, tmp_path: Path) -> None:
    from mmlens.result import AttributionResult

    given = ("sweep", "head_attribution", str(tmp_path / "sweep"), *QUICK)
    first = mmlens(*given, "--samples", "2")
    assert first.returncode == 0, first.stderr
    assert "2 of 2 units done: 0 found, 2 computed" in first.stdout
    assert "2 of 2 units done: 2 found, 0 computed" in mmlens(*given, "--samples", "2").stdout
    grown = mmlens(*given, "--samples", "3", "--collect", str(tmp_path / "new" / "all.mmlens"))
    assert grown.returncode == 0 and "3 of 3 units done: 2 found, 1 computed" in grown.stdout
    result = AttributionResult.load(tmp_path / "new" / "all.mmlens")
    assert result.n == 3 and "sweep" in str(result.info.command) and result.info.seed == 0


def test_a_sweep_from_python_is_the_same_sweep(mmlens: Command, tmp_path: Path) -> None:
    from mmlens.datasets import scenes
    from mmlens.sweeps import sweep

    asked = scenes.prompts("heldout", 2, family="count", seed=3)
    options = {"n_masks": 128, "n_heldout": 8, "metric": "logit", "seed": 3}
    sweep("scenes", asked, "head_attribution", tmp_path, options, progress=False)
    done = mmlens(
        "sweep",
        "head_attribution",
        str(tmp_path),
        *QUICK,
        "--samples",
        "2",
        "--family",
        "count",
        "--seed",
        "3",
    )
    assert "2 found, 0 computed" in done.stdout, done.stderr


def test_shards_make_the_whole(mmlens: Command, tmp_path: Path) -> None:
    given = ("sweep", "single_head_ablation", str(tmp_path / "parts"), *ABLATION, "--samples", "3")
    out = str(tmp_path / "all.mmlens")
    assert "2 of 2 units done" in mmlens(*given, "--shard", "1/2").stdout
    early = mmlens("collect", str(tmp_path / "parts"), out)
    assert early.returncode == 1 and "1 of 3 samples are not in" in early.stderr
    assert "--leave-out" in early.stderr and not Path(out).exists()
    some = mmlens("collect", str(tmp_path / "parts"), out, "--leave-out")
    assert some.returncode == 0 and "2 samples collected" in some.stdout
    assert "1 of 1 units done" in mmlens(*given, "--shard", "2/2").stdout
    assert "3 samples collected" in mmlens("collect", str(tmp_path / "parts"), out).stdout
    mmlens("sweep", "single_head_ablation", str(tmp_path / "one"), *ABLATION, "--samples", "3")
    assert shards(tmp_path / "parts") == shards(tmp_path / "one")


def test_images_get_the_answers_of_the_model(
    mmlens: Command, folder: Path, images: list[Path], tmp_path: Path
) -> None:
    from mmlens.inputs import Prompt
    from mmlens.model import HookedVLM
    from mmlens.sweeps import collect

    given = ("sweep", "single_head_ablation", str(tmp_path), *map(str, images[:2]), "--model", str(folder))
    done = mmlens(*given, "--question", SAID, *ABLATION)
    assert done.returncode == 0, done.stdout + done.stderr
    model = HookedVLM.from_pretrained(str(folder))
    inputs = model.prepare([Prompt(question=SAID, image=str(image)) for image in images[:2]])
    said = model(inputs, logits_pos="final")[:, -1].argmax(-1).tolist()
    told = collect(tmp_path).data["answer"].values.tolist()
    assert [model.tokenizer.convert_tokens_to_ids(str(one).strip()) for one in told] == said


def test_failed_samples_are_listed_and_exit_with_1(
    mmlens: Command, folder: Path, images: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    given = ("sweep", "single_head_ablation", str(tmp_path / "out"), str(images[0]), str(broken), *ABLATION)
    asked = ("--model", str(folder), "--question", SAID, "--collect", str(tmp_path / "all.mmlens"))
    done = mmlens(*given, *asked)
    assert done.returncode == 1 and "1 of 2 units done" in done.stdout
    assert "sample 1: ImageError: sample 1: " in done.stdout and "SweepError: 1 of 2 samples" in done.stderr
    assert not (tmp_path / "all.mmlens").exists()
    done = mmlens(*given, *asked, "--leave-out")
    assert done.returncode == 1 and "1 samples collected" in done.stdout


def test_pairs_of_scenes(mmlens: Command, tmp_path: Path) -> None:
    given = ("sweep", "activation_patching", str(tmp_path), *ABLATION, "--samples", "1")
    done = mmlens(*given, "--change", "colour")
    assert done.returncode == 0 and "1 of 1 units done" in done.stdout, done.stdout + done.stderr
    done = mmlens(*given)
    assert done.returncode == 2 and "InputError: activation_patching compares pairs" in done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["head_atribution"], "ConfigError: there is no analysis 'head_atribution'"),
        (
            ["head_attribution", "--option", "n_mask=3"],
            "ConfigError: head_attribution takes no option 'n_mask'",
        ),
        (["head_attribution", "--option", "n_masks"], "must be NAME=VALUE"),
        (["head_attribution", "--option", "control=True"], "is no JSON: write true"),
        (["head_attribution", "--option", "seed=1", "--option", "seed=2"], "each name once"),
        (["head_attribution", "--shard", "3/2"], "ConfigError: shard '3/2' must be i/n"),
        (["head_attribution", "--actors", "3"], "are about --executor ray"),
        (["head_attribution", "--family", "nonsense"], "question family 'nonsense' is unknown"),
        (["head_attribution", "--question", "what ?"], "belong together"),
        (["head_attribution", "--change", "colour"], "takes no pairs"),
        (["faithfulness"], "missing a required argument: 'scores'"),
        (["head_attribution", "--model", "./nowhere"], "CheckpointError"),
    ],
    ids=str,
)
def test_bad_input_exits_with_2_and_leaves_nothing(
    mmlens: Command, workdir: Path, given: list[str], message: str
) -> None:
    done = mmlens("sweep", given[0], "out", *given[1:], "--samples", "1", "--no-progress")
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and list(workdir.iterdir()) == []


def test_another_sweep_in_the_folder_exits_with_2(mmlens: Command, tmp_path: Path) -> None:
    given = ("sweep", "single_head_ablation", str(tmp_path), "--samples", "1", *ABLATION)
    assert mmlens(*given).returncode == 0
    done = mmlens(*given, "--seed", "1")
    assert done.returncode == 2 and "holds another sweep: options" in done.stderr
    done = mmlens("collect", str(tmp_path / "units"), str(tmp_path / "x"))
    assert done.returncode == 1 and "manifest.json is not there" in done.stderr


def listen_to_ctrl_c() -> None:
    """A suite that runs in the background ignores Ctrl-C, and its children would, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_loses_nothing_and_says_how_to_go_on(mmlens: Command, tmp_path: Path) -> None:
    given = [
        "sweep",
        "tests.sweeps.build:slow",
        str(tmp_path / "out"),
        "--samples",
        "40",
        "--option",
        "seconds=0.2",
    ]
    command = [sys.executable, "-m", "mmlens.cli", *given, *ABLATION]
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **piped, preexec_fn=listen_to_ctrl_c) as running:
        deadline = time.monotonic() + 120
        while len(shards(tmp_path / "out")) < 2 and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=120)
    done = shards(tmp_path / "out")
    assert running.returncode == 130, stdout + stderr
    assert f"interrupted. {len(done)} finished samples in" in stderr and "goes on from there" in stderr
    assert "Traceback" not in stderr and 2 <= len(done) < 40
    again = mmlens(*given, *ABLATION, "--shard", "1/39")
    assert again.returncode == 0 and "2 of 2 units done: 1 found, 1 computed" in again.stdout, again.stderr
    assert done.items() < shards(tmp_path / "out").items()
