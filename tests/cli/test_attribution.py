"""``mmlens attribute`` on a tiny checkpoint."""

from pathlib import Path

from tests.cli.conftest import Command


def test_attribute_writes_a_report(mmlens: Command, folder: Path, images: list[Path], tmp_path: Path) -> None:
    done = mmlens(
        "attribute", str(images[0]), "--question", "what colour is this object ?", "--model", str(folder),
        "--masks", "96", "--out", str(tmp_path / "out"), "--no-progress",
        "--heldout", str(images[1]), "--heldout", str(images[2]),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "held-out R²" in done.stdout
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "report.html",
        "attribution.mmlens",
        "comparisons.mmlens",
        "control_attribution.mmlens",
    } <= written
