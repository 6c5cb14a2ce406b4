"""What text after the image can see in a layer with a sliding window.

A window closes the same edges under every head mask, so it is kept once per prompt and window size, as the suffix
against each segment of the keys; never per mask.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Sight:
    """Which keys each position of the suffix may read.

    Attributes:
        system: keys of every token before the suffix that is no image token.
        image: keys of the image tokens.
        suffix: keys of the suffix itself; causal.
        whole_image: whether every position sees every image token.
    """

    system: Bool[Tensor, "suffix system"]
    image: Bool[Tensor, "suffix image"]
    suffix: Bool[Tensor, "suffix suffix"]
    whole_image: bool

    def to(self, device: torch.device) -> "Sight":
        """The same on another device."""
        return replace(
            self, system=self.system.to(device), image=self.image.to(device), suffix=self.suffix.to(device)
        )

    def own_bias(self, n_query: int, group: int, like: Tensor) -> Float[Tensor, "query_group key"]:
        """Additive mask of the last positions over system tokens and the suffix; each still reads itself.

        Args:
            n_query: how many of the last positions ask.
            group: query heads per key-value head, folded into the queries.
            like: gives dtype and device.
        """
        seen = torch.cat([self.system, self.suffix], dim=1)[-n_query:].repeat_interleave(group, dim=0)
        return _additive(seen, like)

    def image_bias(self, n_query: int, group: int, like: Tensor) -> Float[Tensor, "query_group image"]:
        """Additive mask of the last positions over image tokens; a position may see none of them."""
        return _additive(self.image[-n_query:].repeat_interleave(group, dim=0), like)

    def n_seen(self, n_query: int) -> Int[Tensor, "query 1"]:
        """How many image tokens each of the last positions sees."""
        return self.image[-n_query:].sum(dim=1, keepdim=True)


def sight(window: int | None, start: int, is_image: Bool[Tensor, " prefix"], n_pos: int) -> Sight | None:
    """What the suffix sees through a window; None if the window hides nothing from it.

    Args:
        window: how many keys back a query reads, itself included; None for all.
        start: column at which the suffix begins.
        is_image: which columns before it hold image tokens; on the CPU.
        n_pos: columns of the prompt.
    """
    if window is None or n_pos <= window:
        return None
    query = torch.arange(start, n_pos)[:, None]
    key = torch.arange(n_pos)[None, :]
    seen = (key <= query) & (key > query - window)
    image = seen[:, :start][:, is_image]
    return Sight(
        system=seen[:, :start][:, ~is_image],
        image=image,
        suffix=seen[:, start:],
        whole_image=bool(image.all()),
    )


def _additive(seen: Bool[Tensor, "query key"], like: Tensor) -> Float[Tensor, "query key"]:
    """0 where a key is seen, the lowest finite number elsewhere: a row that sees none then stays finite."""
    closed = torch.finfo(like.dtype).min
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill(
        ~seen.to(like.device), closed
    )
