"""Sweeps end to end: equal to the analysis of all prompts, whatever kills, damages or shares them."""

import multiprocessing
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmlens.analyses import activation_patching, head_attribution, single_head_ablation
from mmlens.errors import ConfigError, InputError, SweepError
from mmlens.result import Result
from mmlens.sweeps import collect, results, sweep
from tests.engine.build import prompt
from tests.sweeps.build import QUICK, model, prompts, shards
from tests.tiny import tiny_image

POISONED = "tests.sweeps.build:poisoned"
SLOW = "tests.sweeps.build:slow"
FORK = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def tiny() -> Any:
    return model()


def run(tiny: Any, folder: Path, n: int = 3, **options: Any) -> Any:
    return sweep(tiny, prompts(n), "head_attribution", folder, QUICK, progress=False, **options)


def test_sweep_equals_the_analysis_of_all_prompts_at_once(tiny: Any, tmp_path: Path) -> None:
    report = run(tiny, tmp_path)
    assert dict(report.poison) == {} and (report.n_units, report.computed, report.found) == (3, 3, 0)
    swept, whole = collect(tmp_path), head_attribution(tiny, prompts(3), progress=False, **QUICK)
    assert type(swept) is type(whole) and swept.data.sizes == whole.data.sizes
    for name in whole.data.variables:
        if whole.data[name].dtype.kind == "f":
            np.testing.assert_allclose(swept.data[name], whole.data[name], rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            assert swept.data[name].identical(whole.data[name]), name
    assert swept.data.attrs == whole.data.attrs
    assert swept.info.prompts == whole.info.prompts and swept.info.image_sha256 == whole.info.image_sha256
    swept.save(tmp_path / "all.mmlens")
    assert Result.load(tmp_path / "all.mmlens").data.identical(swept.data)


def test_masks_differ_between_samples_and_follow_the_number(tiny: Any, tmp_path: Path) -> None:
    asked = [prompt(0)] * 2
    sweep(tiny, asked, "head_attribution", tmp_path, QUICK, progress=False)
    theta = collect(tmp_path).data["theta"].values
    assert not np.array_equal(theta[0], theta[1])
    again = head_attribution(tiny, asked[:1], first_sample=1, progress=False, **QUICK)
    assert np.array_equal(again.theta.values[0], theta[1])


def test_pairs_and_prompts_of_other_lengths(tiny: Any, tmp_path: Path) -> None:
    options = {"self_check": False, "min_gap": 1e-9}
    pairs = [(prompt(i), prompt(i + 5)) for i in range(2)]
    sweep(tiny, pairs, "activation_patching", tmp_path / "pairs", options, progress=False)
    whole = activation_patching(tiny, [a for a, _ in pairs], [b for _, b in pairs], progress=False, **options)
    effect = collect(tmp_path / "pairs").data["effect"]
    np.testing.assert_allclose(effect, whole.data["effect"], rtol=1e-4, atol=1e-5)
    asked = [prompt(0, "what is this ?"), prompt(1, "what colour is this object ?")]
    sweep(tiny, asked, "head_attribution", tmp_path / "lengths", QUICK, progress=False)
    roles = collect(tmp_path / "lengths").data["role"].values
    assert list(roles[0][-3:]) == ["final", "pad", "pad"] and "pad" not in roles[1]


def test_a_second_run_computes_nothing(tiny: Any, tmp_path: Path) -> None:
    run(tiny, tmp_path)
    before, seen = shards(tmp_path), {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    report = run(tiny, tmp_path)
    assert (report.found, report.computed) == (3, 0) and shards(tmp_path) == before
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == seen


def test_shards_of_several_processes_make_the_whole(tiny: Any, tmp_path: Path) -> None:
    run(tiny, tmp_path / "one", 5)
    for part in ("2/3", "3/3"):
        report = run(tiny, tmp_path / "parts", 5, shard=part)
    assert report.n_units == 1
    with pytest.raises(SweepError, match=r"2 of 5 samples are not in .* yet, the first is sample 0"):
        collect(tmp_path / "parts")
    some = collect(tmp_path / "parts", missing="leave_out")
    assert some.data["sample"].values.tolist() == ["1", "2", "4"]
    assert [number for number, one in results(tmp_path / "parts") if one is None] == [0, 3]
    run(tiny, tmp_path / "parts", 5, shard="1/3")
    assert shards(tmp_path / "parts") == shards(tmp_path / "one")


# --- faults


@FORK
def test_killed_again_and_again_the_results_are_the_same_to_the_last_byte(tiny: Any, tmp_path: Path) -> None:
    """SIGKILL at five moments, wherever the sweep is then; what was finished is not run again."""
    options, asked = {"seconds": 0.01, "self_check": False}, prompts(12)
    sweep(tiny, asked, SLOW, tmp_path / "quiet", options, progress=False)
    arguments = (tiny, asked, SLOW, tmp_path / "killed", options)
    done = [0]
    for more in (1, 1, 2, 2, 1):
        child = _forked(sweep, *arguments)
        deadline = time.monotonic() + 60
        while len(shards(tmp_path / "killed")) < done[-1] + more and time.monotonic() < deadline:
            time.sleep(0.003)
        child.kill()
        child.join()
        assert child.exitcode == -9
        done.append(len(shards(tmp_path / "killed")))
    assert all(later > earlier for earlier, later in pairwise(done)) and done[-1] < 12
    report = sweep(*arguments, progress=False)
    assert (report.found, report.computed, report.recomputed) == (done[-1], 12 - done[-1], 0)
    assert shards(tmp_path / "killed") == shards(tmp_path / "quiet")
    assert collect(tmp_path / "killed").data.identical(collect(tmp_path / "quiet").data)


def test_a_list_that_grew_goes_on_in_its_folder(tiny: Any, tmp_path: Path) -> None:
    run(tiny, tmp_path / "at once", 5)
    run(tiny, tmp_path / "grown", 2)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "grown" / "units").iterdir()}
    report = run(tiny, tmp_path / "grown", 5)
    assert (report.n_units, report.found, report.computed) == (5, 2, 3)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert shards(tmp_path / "grown") == shards(tmp_path / "at once")
    assert collect(tmp_path / "grown").data.identical(collect(tmp_path / "at once").data)
    shorter = run(tiny, tmp_path / "grown", 2)
    assert (shorter.n_units, shorter.found) == (2, 2) and collect(tmp_path / "grown").n == 5


@FORK
def test_two_writers_one_with_the_longer_list(tiny: Any, tmp_path: Path) -> None:
    run(tiny, tmp_path / "one", 6)
    for i, lengths in enumerate([(2, 6), (6, 2)]):
        folder = tmp_path / str(i)
        given = [(tiny, prompts(n), "head_attribution", folder, QUICK) for n in lengths]
        children = [_forked(sweep, *arguments) for arguments in given]
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0, 0]
        assert shards(folder) == shards(tmp_path / "one") and collect(folder).n == 6


@FORK
def test_two_writers_on_one_folder(tiny: Any, tmp_path: Path) -> None:
    run(tiny, tmp_path / "one", 6)
    arguments = (tiny, prompts(6), "head_attribution", tmp_path / "both", QUICK)
    children = [_forked(sweep, *arguments) for _ in range(2)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert shards(tmp_path / "both") == shards(tmp_path / "one")
    assert run(tiny, tmp_path / "both", 6).found == 6
    assert not list((tmp_path / "both").rglob(".*.tmp")) and not list(tmp_path.glob("both/quarantine/*"))


def _forked(function: Any, *arguments: Any) -> Any:
    """A real process of its own, which can be killed; forked, because it then starts at once."""
    context = multiprocessing.get_context("fork")
    child = context.Process(target=function, args=arguments, kwargs={"progress": False})
    child.start()
    return child


def test_a_damaged_unit_goes_to_quarantine_and_is_computed_again(tiny: Any, tmp_path: Path) -> None:
    run(tiny, tmp_path)
    good = shards(tmp_path)
    victim = tmp_path / "units" / next(iter(good))
    bad = bytearray(victim.read_bytes())
    bad[len(bad) // 2] ^= 4
    victim.write_bytes(bytes(bad))
    report = run(tiny, tmp_path)
    assert (report.found, report.computed, report.recomputed) == (2, 1, 1)
    assert "1 computed (1 of them again, damaged)" in report.headline()
    assert shards(tmp_path) == good
    [kept] = (tmp_path / "quarantine").iterdir()
    assert kept.read_bytes() == bytes(bad)
    victim.write_bytes(good[victim.name][:-9])
    with pytest.raises(SweepError, match="in quarantine now: run the sweep again"):
        collect(tmp_path)


def test_poison_is_reported_and_the_rest_finishes(tiny: Any, tmp_path: Path) -> None:
    asked = [prompt(0), prompt(1, "what is this ?"), prompt(2)]
    options = {"bad": "what is this ?", "self_check": False}
    report = sweep(tiny, asked, POISONED, tmp_path, options, progress=False)
    assert dict(report.poison) == {1: "ZeroDivisionError: sample 1 asked 'what is this ?'"}
    assert (report.computed, report.done, len(shards(tmp_path))) == (2, 2, 2)
    assert "2 of 3 units done" in report.headline() and "1 failed" in report.headline()
    again = sweep(tiny, asked, POISONED, tmp_path, options, progress=False)
    assert (again.found, again.computed, list(again.poison)) == (2, 0, [1])  # failures are never stored
    plain = single_head_ablation(tiny, [asked[2]], self_check=False, progress=False)
    found = collect(tmp_path, missing="leave_out").data["score"].sel(sample="2")
    assert np.array_equal(found, plain.score[0])


def test_an_unreadable_image_is_poison_until_it_is_mended(tiny: Any, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"no picture")
    asked = [prompt(0), replace(prompt(1), image=str(picture)), prompt(2)]
    given = (tiny, asked, "single_head_ablation", tmp_path / "out", {"self_check": False})
    report = sweep(*given, progress=False)
    assert (report.computed, report.n_units, list(report.poison)) == (2, 3, [1])
    assert "ImageError: sample 1" in report.poison[1]
    other = sweep(*given, shard="1/2", progress=False)
    assert (other.found, dict(other.poison)) == (2, {})  # samples 0 and 2
    with pytest.raises(SweepError, match="first is sample 1"):
        collect(tmp_path / "out")
    before = shards(tmp_path / "out")
    tiny_image(1).save(picture)
    mended = sweep(*given, progress=False)
    assert (mended.found, mended.computed, dict(mended.poison)) == (2, 1, {})
    assert before.items() < shards(tmp_path / "out").items() and collect(tmp_path / "out").n == 3
    picture.unlink()
    assert sweep(*given, progress=False).found == 2  # what was computed of it stays
    assert collect(tmp_path / "out").n == 3


# --- refused


def test_another_sweep_in_the_folder_is_refused(tiny: Any, tmp_path: Path) -> None:
    run(tiny, tmp_path)
    for other in ([0, 9, 2], [1, 0], [1, 0, 2, 3]):
        first = next(i for i, number in enumerate(other) if number != i)
        with pytest.raises(SweepError, match=f"another sweep: sample {first} is another one there than here"):
            asked = [prompt(number) for number in other]
            sweep(tiny, asked, "head_attribution", tmp_path, QUICK, progress=False)
    with pytest.raises(SweepError, match="another sweep: options"):
        sweep(tiny, prompts(3), "head_attribution", tmp_path, QUICK | {"seed": 1}, progress=False)


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2"])
def test_malformed_shard_is_refused(tiny: Any, tmp_path: Path, part: str) -> None:
    with pytest.raises(ConfigError, match=r"must be i/n"):
        run(tiny, tmp_path, shard=part)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("analysis", "asked", "match"),
    [
        ("single_head_ablation", [(prompt(0), prompt(1))], "with the model, 2 prompts side by side"),
        ("faithfulness", [prompt(0)], "missing a required argument: 'scores'"),
    ],
)
def test_calls_that_cannot_work_are_refused_before_any_work(
    tmp_path: Path, analysis: str, asked: list[Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        sweep("no such model", asked, analysis, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_no_prompts_no_results_and_no_such_choice_are_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no prompts"):
        run(tiny, tmp_path, 0)
    with pytest.raises(InputError, match="sample 1 of a sweep must be a Prompt"):
        sweep(tiny, [prompt(0), "what ?"], "head_attribution", tmp_path)
    report = sweep(tiny, prompts(1), "tests.sweeps.build:no_result", tmp_path / "none", progress=False)
    assert "must return a Result" in report.poison[0]
    with pytest.raises(SweepError, match="1 of 1 samples are not in"):
        collect(tmp_path / "none", missing="leave_out")
    with pytest.raises(ConfigError, match="known: error, leave_out"):
        collect(tmp_path / "none", missing="ignore")
