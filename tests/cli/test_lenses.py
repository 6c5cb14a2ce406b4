"""``mmlens lens`` about an image."""

from pathlib import Path

from tests.cli.conftest import Command


def test_lens_writes_results_and_figures(
    mmlens: Command, folder: Path, images: list[Path], tmp_path: Path
) -> None:
    from mmlens.result import Result

    given = ["--model", str(folder), "--question", "what is this ?", "--no-progress"]
    done = mmlens("lens", str(images[0]), *given, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "logit lens of resid_post" in done.stdout and "summed exactly over cells" in done.stdout
    direct = Result.load(tmp_path / "direct.mmlens")
    assert direct.data.attrs["metric"] == "logit" and "lens" in str(direct.info.command)
    assert len(list(tmp_path.glob("*.html"))) == 6


def test_lens_needs_a_question_with_its_image(mmlens: Command, images: list[Path]) -> None:
    done = mmlens("lens", str(images[0]))
    assert done.returncode == 1 and "--question" in done.stderr
    done = mmlens("lens", "--answer", "red")
    assert done.returncode == 1 and "about an image" in done.stderr
