"""``mmlens heads`` of scenes and of pictures."""

from pathlib import Path

from tests.cli.conftest import Command


def test_heads_of_scenes_with_a_folder_to_go_on_from(mmlens: Command, tmp_path: Path) -> None:
    from mmlens.result import Result, VisualHeadsResult

    options = ["--samples", "3", "--query", "final", "--folder", str(tmp_path / "rows"), "--no-progress"]
    done = mmlens("heads", *options, "--out", str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    assert "samples: 3, left out: 0" in done.stdout and "image_weight" in done.stdout
    assert mmlens("heads", *options, "--out", str(tmp_path / "b")).returncode == 0
    results = [Result.load(tmp_path / name / "heads.mmlens") for name in ("a", "b")]
    assert isinstance(results[0], VisualHeadsResult) and results[0].data.identical(results[1].data)
    assert (tmp_path / "a" / "heads.html").stat().st_size > 0


def test_heads_of_pictures(mmlens: Command, folder: Path, images: list[Path], tmp_path: Path) -> None:
    question = [
        "--question",
        "what is this ?",
        "--model",
        str(folder),
        "--out",
        str(tmp_path),
        "--no-progress",
    ]
    done = mmlens("heads", *map(str, images[:2]), *question)
    assert done.returncode == 0 and "samples: 2" in done.stdout, done.stderr
    done = mmlens("heads", str(images[0]), "--no-progress")
    assert done.returncode == 1 and "belong together" in done.stderr
