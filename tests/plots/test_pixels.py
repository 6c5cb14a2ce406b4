"""Drawings stay exact, photographs stay small."""

import base64
import io

import numpy as np
from PIL import Image

from mmlens.plots.pixels import as_data_uri
from tests.result.examples import scene


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))


def test_drawings_are_lossless() -> None:
    uri = as_data_uri(scene("circle"))
    assert uri.startswith("data:image/png;base64,")
    assert np.array_equal(decoded(uri), scene("circle"))


def test_photographs_become_jpeg() -> None:
    noise = np.random.default_rng(0).integers(100, 156, (336, 336, 3), np.uint8)
    uri = as_data_uri(noise)
    assert uri.startswith("data:image/jpeg;base64,") and len(uri) < noise.size
    assert np.abs(decoded(uri).astype(int) - noise).mean() < 20
