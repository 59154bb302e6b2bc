"""What the layers of StyleAligned go by: one object, which the adapter puts into their context."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import torch
from refiners.fluxion import layers as fl
from torch import Tensor, cat

from style_aligned.adapter.places import strength_of
from style_aligned.adapter.reference_bank import Mask, ReferenceBank, References, mix

CONTEXT = "style_aligned"


@dataclass(frozen=True, eq=False)
class SharingOptions:
    """How much is shared, as the adapter is set.

    Attributes:
        strength: How often the reference counts.
        scale: The factor for the keys of the references.
        shift: What is added to the scores of the references.
        set_size: The number of rows in a group. None means half of a batch: the two guidance halves of one set.
        halves: Whether both guidance halves share, or the positive one alone.
        query_guidance: How far the negative rows take the reference's queries where nothing is shared.
        strengths: The strengths of the selected layers, by which `strength` is multiplied. None means everywhere.
    """

    strength: float | int = 1.0
    scale: float | int = 1.0
    shift: float | int = 0.0
    set_size: int | None = None
    halves: Literal["both", "positive"] = "both"
    query_guidance: float | int = 0.0
    strengths: Mapping[str, float] | None = None


@dataclass(frozen=True, eq=False)
class Mode:
    """What the rows of a batch are, and the banks beside them.

    Attributes:
        name: Whether a batch holds references and targets (`"batch"`), references alone, which are recorded
            (`"record"`), or targets alone, for which the recorded references are replayed (`"replay"`).
        banks: What is recorded or replayed.
        shares: What each bank counts for, summing up to 1.
    """

    name: Literal["batch", "record", "replay"] = "batch"
    banks: Sequence[ReferenceBank] = ()
    shares: Sequence[float] = (1.0,)


@dataclass(eq=False)
class Sharing:
    """What is shared now, and how much of it.

    Rows are laid out in *groups* of `set_size` consecutive rows: a group is one guidance half of one set of images, and
    its first row is the reference of the others, the targets. With guidance the first half of the groups is the
    negative one.

    Attributes:
        options: How much is shared, which changes when an option of the adapter is set.
        mode: What the rows of a batch are, which changes where the adapter records and replays.
        mask: Which part of the references gives the style.
        is_on: Whether anything is shared at the present step.
    """

    options: SharingOptions = SharingOptions()
    mode: Mode = Mode()
    mask: Mask | None = None
    is_on: bool = True

    def group_size(self, rows: int) -> int:
        """Return the number of consecutive rows that make a group of a batch with references.

        Args:
            rows: The number of rows in the batch.

        Raises:
            ValueError: If the rows cannot be split into groups.
        """
        if self.mode.name == "record":
            return 1
        if self.options.set_size is None:
            if rows == 0 or rows % 2 != 0:
                raise ValueError(
                    f"got a batch of {rows} rows, expected the two guidance halves of one set (an even number):"
                    " without classifier-free guidance, or for several sets in one batch, give the adapter a set_size"
                )
            return rows // 2
        if rows == 0 or rows % self.options.set_size != 0:
            raise ValueError(f"got a batch of {rows} rows, expected a multiple of set_size={self.options.set_size}")
        return self.options.set_size

    def shared_group_size(self, rows: int) -> int:
        """Return the number of consecutive rows that make a group of those halves of a batch that share.

        Args:
            rows: The number of rows in these halves.
        """
        return self.group_size(2 * rows if self.options.halves == "positive" else rows)

    def check_halves(self, rows: int) -> None:
        """Check that a batch has two guidance halves, if that matters.

        Args:
            rows: The number of rows in the batch.

        Raises:
            ValueError: If it does not.
        """
        if self.options.halves == "both" and self.options.query_guidance == 0:
            return
        size = self.group_size(rows) if self.mode.name != "replay" else 1
        if rows % (2 * size) != 0:
            name = "halves" if self.options.halves != "both" else "query_guidance"
            raise ValueError(
                f"got a batch of {rows} rows, expected a negative and a positive half of equal size: {name} needs"
                " classifier-free guidance"
            )

    def is_plain(self, rows: int, place: str) -> bool:
        """Return whether rows come out of a place as they do without StyleAligned, and nothing is to be recorded.

        Args:
            rows: The number of rows.
            place: The name of the place.
        """
        rows = len(range(rows))  # has `torch.compile` take it for a constant: with a symbol, shapes take it minutes
        if not self.is_on or strength_of(self.options.strengths, place) == 0:
            return True
        if self.mode.name == "record":
            return False
        return self.options.strength == 0 or (self.mode.name == "batch" and self.group_size(rows) == 1)

    @property
    def mask_here(self) -> Mask | None:
        """Which part of the references in the batch gives the style."""
        return self.mode.banks[0].mask if self.mode.name == "record" else self.mask

    def strength_at(self, place: str) -> float:
        """Return how often the reference counts at a place."""
        return self.options.strength * strength_of(self.options.strengths, place)

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
        references = 0 if self.mode.name == "replay" else 1
        return grouped[:, :references], grouped[:, references:]

    def join(self, references: Tensor, targets: Tensor) -> Tensor:
        """Put together the rows that `split` has split."""
        grouped = targets if references.shape[1] == 0 else cat((references, targets), dim=1)
        return grouped.flatten(start_dim=0, end_dim=1)

    def record(self, place: str, references: References) -> References:
        """Keep references, if they are being recorded, and return them."""
        if self.mode.name == "record":
            self.mode.banks[0].store(place, references)
        return references

    def fetch(self, place: str, features: Tensor) -> References:
        """Return what was recorded of the references at a place.

        Args:
            place: The name of the place.
            features: The features of the targets.
        """
        return mix([bank.fetch(place, features) for bank in self.mode.banks], self.mode.shares)

    def own_tokens(self, place: str, key: Tensor) -> int:
        """Return how many of the keys are a row's own: more than it has queries, if another adapter has added some.

        Args:
            place: The name of the place.
            key: The keys, followed by those of the references, of shape (rows, shared_keys, dim).
        """
        if self.mode.name == "replay":
            return key.shape[1] - sum(bank.count_tokens(f"{place}.keys") for bank in self.mode.banks)
        return key.shape[1] // 2

    def log_weights(self, place: str, key: Tensor, tokens: int) -> float | Tensor:
        """Return what is added to the scores of the reference's tokens: one number for all, or one for each.

        A reference counts as `strength` images of the targets' size, whatever its own size is.

        Args:
            place: The name of the place.
            key: The keys of the targets, followed by those of the references, of shape (targets, shared_keys, dim).
            tokens: The number of a target's own keys.
        """
        base = self.options.shift + math.log(self.strength_at(place))
        parts = [(1.0, self.mask, key.shape[1] - tokens)]
        if self.mode.name == "replay":
            lengths = [bank.count_tokens(f"{place}.keys") for bank in self.mode.banks]
            masks = [bank.mask for bank in self.mode.banks]
            parts = list(zip(self.mode.shares, masks, lengths, strict=True))
        log_weights = [base + math.log(share * tokens / length) for share, _, length in parts]
        if len(parts) == 1 and parts[0][1] is None:
            return log_weights[0]
        of_each: list[Tensor] = []
        for log_weight, (_, mask, length) in zip(log_weights, parts, strict=True):
            weights = key.new_ones(length) if mask is None else mask.of_tokens(length, key)
            of_each.append(weights.log() + log_weight)
        return torch.cat(of_each)

    def mask_weight(self) -> float:
        """Return what part of the references gives the style."""
        masks = [bank.mask for bank in self.mode.banks] if self.mode.name == "replay" else [self.mask]
        shares = self.mode.shares if self.mode.name == "replay" else (1.0,)
        return sum(share * (1.0 if mask is None else mask.mean) for share, mask in zip(shares, masks, strict=True))


def refuse_copy() -> NoReturn:
    """Refuse a structural copy, as Refiners' adapters of chains do: in the copy, nothing would be shared.

    Raises:
        RuntimeError: Always.
    """
    raise RuntimeError(
        "expected a model without StyleAligned to copy, got one that a StyleAlignedAdapter is injected in: eject() it"
        " first, and inject() it again after the copy"
    )


def get_sharing(layer: fl.ContextModule) -> Sharing:
    """Return what a layer of StyleAligned finds in its context."""
    chain = layer if isinstance(layer, fl.Chain) else layer.parent
    assert chain is not None  # as in `use_context`, whose way of asking `torch.compile` cannot follow
    return chain.provider.get_context(CONTEXT)["sharing"]
