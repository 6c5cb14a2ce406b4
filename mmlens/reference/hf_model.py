"""The Hugging Face model of a checkpoint, in float32, loaded by transformers itself wherever it can."""

from typing import TYPE_CHECKING, Any

import torch

from mmlens.errors import CheckpointError, UnsupportedArchitecture
from mmlens.loading import Checkpoint, check_tensors, named_tensors_of
from mmlens.loading.names import is_unused

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_hf_model(checkpoint: Checkpoint, device: torch.device | str | None = None) -> "PreTrainedModel":
    """Loads the unmodified model; needs four bytes a parameter.

    Args:
        checkpoint: an opened checkpoint. If it is in the original LLaVA format, which transformers cannot
            read, its tensors come through mmlens's own reader.
        device: where to put it; None is the CPU.

    Raises:
        CheckpointError: transformers finds tensors missing or misshapen.
        UnsupportedArchitecture: transformers has no image-text-to-text model for the configuration.
    """
    from transformers import AutoModelForImageTextToText

    auto: Any = AutoModelForImageTextToText
    try:
        if checkpoint.is_original_format:
            return _fill(auto, checkpoint).eval().to(device)
        model, info = auto.from_pretrained(
            checkpoint.folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    except ValueError as error:
        raise UnsupportedArchitecture(
            f"transformers cannot build {checkpoint.model_id!r}: {error}"
        ) from error
    bad = [*info["missing_keys"], *info["mismatched_keys"]]
    if bad:
        raise CheckpointError(
            f"transformers finds {len(bad)} tensors of {checkpoint.model_id!r} missing or misshapen, among "
            f"them {bad[0]!r}; it would fill them with random numbers. Download or save the checkpoint "
            "again."
        )
    return model.eval().to(device)


def _fill(auto_class: Any, checkpoint: Checkpoint) -> Any:
    model = auto_class.from_config(checkpoint.hf_config, dtype=torch.float32, attn_implementation="eager")
    live = named_tensors_of(model)
    expected = {name: tuple(tensor.shape) for name, tensor in live.items() if not is_unused(name)}
    tied = bool(checkpoint.hf_config.tie_word_embeddings)
    for name, tensor in check_tensors(checkpoint.tensors, expected, tied=tied).items():
        live[name].copy_(tensor)
    return model
