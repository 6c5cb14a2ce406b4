"""``mmlens flow`` of images."""

from pathlib import Path

from tests.cli.conftest import Command


def test_flow_of_images_writes_both_flows(
    mmlens: Command, folder: Path, images: list[Path], tmp_path: Path
) -> None:
    from mmlens.result import FlowResult

    done = mmlens(
        "flow", *map(str, images[:2]), "--question", "what is this ?", "--model", str(folder), "--window", "1",
        "--edge", "image->final", "--edge", "image->question", "--metric", "logit", "--no-progress",
        "--out", str(tmp_path / "flow"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "samples: 2, left out: 0" in done.stdout and (tmp_path / "flow" / "flow.html").exists()
    result = FlowResult.load(tmp_path / "flow" / "flow.mmlens")
    assert result.effect.sizes == {"sample": 2, "edge": 2, "layer": 3}
    assert result.info.command is not None and "flow" in result.info.command
    assert "belong together" in mmlens("flow", "--question", "what ?", "--no-progress").stderr
