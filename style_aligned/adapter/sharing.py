"""What the layers of StyleAligned go by: one object, which the adapter puts into their context."""

import math
from dataclasses import dataclass, field
from typing import Literal

from refiners.fluxion import layers as fl
from torch import Tensor, cat

from style_aligned.adapter.reference_bank import ReferenceBank

CONTEXT = "style_aligned"


@dataclass(eq=False)
class Sharing:
    """What is shared now, and how much of it.

    Rows are laid out in *groups* of `set_size` consecutive rows: a group is one guidance half of one set of images, and
    its first row is the reference of the others, the targets.

    Attributes:
        strength: How often the reference counts.
        scale: The factor for the keys of the references.
        shift: What is added to the scores of the references.
        set_size: The number of rows in a group. None means half of a batch: the two guidance halves of one set.
        mode: Whether a batch holds references and targets (`"batch"`), references alone, which are recorded
            (`"record"`), or targets alone, for which the recorded references are replayed (`"replay"`).
        bank: What is recorded or replayed.
    """

    strength: float = 1.0
    scale: float = 1.0
    shift: float = 0.0
    set_size: int | None = None
    mode: Literal["batch", "record", "replay"] = "batch"
    bank: ReferenceBank = field(default_factory=ReferenceBank)

    def group_size(self, rows: int) -> int:
        """Return the number of consecutive rows that make a group of a batch with references.

        Args:
            rows: The number of rows in the batch.

        Raises:
            ValueError: If the rows cannot be split into groups.
        """
        if self.mode == "record":
            return 1
        if self.set_size is None:
            if rows == 0 or rows % 2 != 0:
                raise ValueError(
                    f"got a batch of {rows} rows, expected the two guidance halves of one set (an even number):"
                    " without classifier-free guidance, or for several sets in one batch, give the adapter a set_size"
                )
            return rows // 2
        if rows == 0 or rows % self.set_size != 0:
            raise ValueError(f"got a batch of {rows} rows, expected a multiple of set_size={self.set_size}")
        return self.set_size

    def is_plain(self, rows: int) -> bool:
        """Return whether a batch comes out as it does without StyleAligned, and nothing is to be recorded."""
        rows = len(range(rows))  # has `torch.compile` take it for a constant: with a symbol, shapes take it minutes
        if self.mode == "record":
            return False
        return self.strength == 0 or (self.mode == "batch" and self.group_size(rows) == 1)

    def split(self, x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        """Split rows into those of the references and those of the targets.

        Args:
            x: The features, of shape (rows, ...).
            groups: The number of groups.

        Returns:
            The rows of the references, of shape (groups, 1, ...), or (groups, 0, ...) where targets are alone, and the
            rows of the targets, of shape (groups, targets, ...).
        """
        grouped = x.reshape(groups, -1, *x.shape[1:])
        references = 0 if self.mode == "replay" else 1
        return grouped[:, :references], grouped[:, references:]

    def join(self, references: Tensor, targets: Tensor) -> Tensor:
        """Put together the rows that `split` has split."""
        grouped = targets if references.shape[1] == 0 else cat((references, targets), dim=1)
        return grouped.flatten(start_dim=0, end_dim=1)

    def log_weight(self, tokens: int, reference_tokens: int) -> float:
        """Return what is added to the scores of the reference's tokens.

        A reference counts as `strength` images of the targets' size, whatever its own size is.

        Args:
            tokens: The number of tokens of a target.
            reference_tokens: The number of tokens of a reference.
        """
        return self.shift + math.log(self.strength) + math.log(tokens / reference_tokens)


def get_sharing(layer: fl.ContextModule) -> Sharing:
    """Return what a layer of StyleAligned finds in its context."""
    chain = layer if isinstance(layer, fl.Chain) else layer.parent
    assert chain is not None  # as in `use_context`, whose way of asking `torch.compile` cannot follow
    return chain.provider.get_context(CONTEXT)["sharing"]
