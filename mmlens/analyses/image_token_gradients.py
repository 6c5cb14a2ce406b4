"""Which image tokens a metric is most sensitive to: the length of its gradient at each image feature.

1. Encode the images once.
2. Run with gradients on the image features, and take the metric's gradient there.
3. Score = length of each token's gradient.

Source: the gradient-chosen tokens of Neo et al. 2024 (arXiv 2410.07149); that the plain gradient's length decides, not
integrated gradients, is our choice.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.analyses.samples import as_samples
from mmlens.errors import MissingPixels
from mmlens.metrics import as_metric
from mmlens.model import HookedVLM


def image_token_gradients(
    model: HookedVLM, prompts: Any, *, metric: Any = "logit"
) -> Float[Tensor, "image_token"]:
    """Length of the metric's gradient at each image token's feature.

    Args:
        model: the model.
        prompts: prompts, chat messages, a processor's tensors or ``Inputs``.
        metric: a name (see ``mmlens.metrics``), a metric, or a callable ``(logits, inputs) -> [batch]``.

    Returns:
        One number per image token of the batch, in order, in the metric's unit per unit of the feature; 0 or more.
        ``mmlens.interventions.top_group`` makes a group of the largest.

    Raises:
        MissingPixels: no images.
        AnswerError: the metric needs an answer that a prompt lacks.
    """
    measure = as_metric(metric)
    inputs = as_samples(model, prompts, measure)
    if inputs.image_features is None:
        raise MissingPixels("there are no images, so no image tokens to score.")
    kept: list[Tensor] = []

    def require(features: Tensor, hook: Any) -> Tensor:
        kept.append(features.detach().requires_grad_())
        return kept[0]

    with torch.enable_grad():
        logits = model.run_with_hooks(inputs, fwd_hooks=[("hook_image_features", require)])
        (gradient,) = torch.autograd.grad(measure(logits, inputs).sum(), kept)
    return gradient.norm(dim=-1)
