"""``mmlens info`` and ``mmlens verify`` on tiny checkpoints."""

from pathlib import Path

from tests.cli.conftest import Command


def test_info(mmlens: Command, folder: Path) -> None:
    done = mmlens("info", str(folder), "--tokens", "600", "--hooks")
    assert done.returncode == 0, done.stderr
    assert "3 layers x 4 heads (2 key-value heads)" in done.stdout
    assert "blocks.2.attn.hook_pattern" in done.stdout
    assert "one prompt of 600 tokens" in done.stdout
    assert "640 x 480 pixels: 16 tokens from one square of 20 x 20" in done.stdout


def test_info_of_tiles_in_half_precision(mmlens: Command, tmp_path: Path) -> None:
    from tests.zoo import VARIANTS

    folder = VARIANTS["llava-next-vicuna"].save(tmp_path)
    done = mmlens("info", str(folder), "--images", "2", "--image-size", "38x41", "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("38 x 41 pixels") == 2 and "squares of 20 x 20 (4 x 4 cells each)" in done.stdout
    assert "activations in bfloat16" in done.stdout and "parameters in float32" in done.stdout


def test_info_without_images(mmlens: Command, tmp_path: Path) -> None:
    from tests.zoo import VARIANTS

    folder = str(VARIANTS["text-llama"].save(tmp_path))
    done = mmlens("info", folder)
    assert done.returncode == 0 and "a text-only model" in done.stdout
    assert "UnexpectedPixels" in mmlens("info", folder, "--images", "1").stderr


def test_verify_passes(mmlens: Command, folder: Path) -> None:
    done = mmlens("verify", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "census" in done.stdout.lower()
