"""Fixtures of the inputs tests; what they build is in ``kits``."""

from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def kits():
    """Processor and model shape for each kind of tokenizer."""
    from tests.inputs.kits import (
        CHATML,
        build,
        bytelevel_tokenizer,
        metaspace_tokenizer,
        shape_of,
        word_tokenizer,
    )

    processors = {
        "word": build(word_tokenizer()),
        "metaspace": build(metaspace_tokenizer()),
        "bytelevel": build(bytelevel_tokenizer(), CHATML),
    }
    return {name: SimpleNamespace(processor=p, cfg=shape_of(p)) for name, p in processors.items()}


@pytest.fixture(scope="session", params=["word", "metaspace", "bytelevel"])
def kit(request, kits):
    """One kind of tokenizer after the other."""
    return kits[request.param]


@pytest.fixture(scope="session")
def word(kits):
    """The word-level tokenizer, where one word is one token."""
    return kits["word"]


@pytest.fixture(scope="session")
def make_cfg(kits):
    """Model shapes with other settings, for the word-level processor."""
    from tests.inputs.kits import shape_of

    return lambda **settings: shape_of(kits["word"].processor, **settings)
