"""``mmlens patch`` of two images, and of one in noise."""

from pathlib import Path

from tests.cli.conftest import Command


def test_patch_two_images_and_one_in_noise(
    mmlens: Command, folder: Path, images: list[Path], tmp_path: Path
) -> None:
    from mmlens.result import PatchingResult

    given = ["--model", str(folder), "--question", "what is this ?", "--no-progress", "--metric", "kl"]
    for pictures in (images[:2], images[:1]):
        out = tmp_path / str(len(pictures))
        done = mmlens("patch", *map(str, pictures), *given, "--out", str(out))
        assert done.returncode == 0, done.stderr
        assert "recovery" in done.stdout and (out / "patching.html").stat().st_size > 10_000
        result = PatchingResult.load(out / "patching.mmlens")
        assert result.recovery.sizes == {"sample": 1, "layer": 3, "head": 4}
        assert result.info.command is not None and "patch" in result.info.command


def test_patch_needs_a_question_with_its_images(mmlens: Command, images: list[Path]) -> None:
    done = mmlens("patch", str(images[0]))
    assert done.returncode == 1 and "--question" in done.stderr
    done = mmlens("patch", "--question", "what is this ?")
    assert done.returncode == 1 and "about images" in done.stderr
