"""Prompts as the model takes them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, device as Device, dtype as DType

from style_aligned.models.finite import check_finite
from style_aligned.models.model import Model


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """What a model needs of a prompt: one row for each guidance half, the negative one first.

    Attributes:
        clip_text_embedding: The embedding of each token.
        pooled_text_embedding: The embedding of the whole prompt. None for models that need none.
    """

    clip_text_embedding: Float[Tensor, "halves tokens dim"]
    pooled_text_embedding: Float[Tensor, "halves pooled_dim"] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The embeddings that there are, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def rows(self) -> int:
        """The number of rows: one for each guidance half."""
        return len(self.clip_text_embedding)

    @property
    def conditional(self) -> "TextEmbedding":
        """The row of the prompt, without that of the negative one."""
        return TextEmbedding(*(tensor[-1:] for tensor in self.tensors.values()))

    def to(self, device: Device | str, dtype: DType) -> "TextEmbedding":
        """Return the same on a device, in a data type."""
        return TextEmbedding(*(tensor.to(device=device, dtype=dtype) for tensor in self.tensors.values()))

    def behind_negative_of(self, other: "TextEmbedding") -> "TextEmbedding":
        """Return the row of this prompt behind the negative one of another embedding, where that has one.

        Args:
            other: The other embedding.
        """
        rows = zip(other.tensors.values(), self.conditional.tensors.values(), strict=True)
        return TextEmbedding(*(torch.cat((others[:-1], own)) for others, own in rows))


@torch.no_grad()
def embed(model: Model, prompt: str, negative_prompt: str | None = "") -> TextEmbedding:
    """Compute the text embedding of a prompt.

    An empty negative prompt is embedded as zeros where the model says so, by an attribute
    `force_zeros_for_empty_prompt` that is true: as diffusers does for SDXL.

    Args:
        model: The model.
        prompt: The prompt.
        negative_prompt: The prompt to guide away from. None, or a model that has no classifier-free guidance, leaves
            its row out.
    """
    embedding = _encode(model, prompt)
    if negative_prompt is None or not model.classifier_free_guidance:
        return embedding
    negative = _encode(model, negative_prompt)
    if not negative_prompt and getattr(model, "force_zeros_for_empty_prompt", False):
        negative = TextEmbedding(*(torch.zeros_like(tensor) for tensor in negative.tensors.values()))
    rows = zip(negative.tensors.values(), embedding.tensors.values(), strict=True)
    return TextEmbedding(*(torch.cat(pair) for pair in rows))


def stack(embeddings: Sequence[TextEmbedding]) -> TextEmbedding:
    """Lay out the embeddings of several prompts as rows of a batch: all negative ones, then all positive ones.

    Args:
        embeddings: The embeddings, at least one.
    """
    columns = zip(*(embedding.tensors.values() for embedding in embeddings), strict=True)
    return TextEmbedding(*(torch.stack(column, dim=1).flatten(start_dim=0, end_dim=1) for column in columns))


def _encode(model: Model, text: str) -> TextEmbedding:
    encoded: Any = model.clip_text_encoder(text)
    tensors = cast(tuple[Tensor, ...], encoded) if isinstance(encoded, tuple) else (cast(Tensor, encoded),)
    for tensor in tensors:
        check_finite(tensor, "clip_text_encoder", model.clip_text_encoder, f"the text embeddings of {text!r}")
    return TextEmbedding(*tensors)
