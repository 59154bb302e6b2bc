"""The passes of a U-Net: what is checked before each, and what an interrupted one has left."""

from collections.abc import Sequence
from typing import Any

import torch
from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion.reference_only_control import ReferenceOnlyControlAdapter
from torch import Tensor

from style_aligned.adapter.residuals import Residuals, get_residuals, reset_residuals
from style_aligned.adapter.sharing import Sharing, SharingOptions


class Passes:
    """Have every pass of a U-Net checked, and begin as on a fresh one whatever has become of the one before.

    What an interrupted pass has left in the context is told from the residuals of a caller, who may put some there
    before a pass.
    """

    def __init__(self, unet: fl.Chain, adapter: fl.Chain, sharing: Sharing) -> None:
        """Initialize the Passes.

        Args:
            unet: The U-Net.
            adapter: The adapter that is injected in it.
            sharing: What is shared, by which latents are checked.
        """
        self._unet = unet
        self._adapter = adapter
        self._sharing = sharing
        self._residuals: Residuals | None = None  # of the pass on the way
        self._checked_rows: int | None = None
        self._checked_options: SharingOptions | None = None
        self._hooks = [unet.register_forward_pre_hook(self._begin), unet.register_forward_hook(self._end)]

    def leave(self) -> None:
        """Leave the U-Net as a fresh one."""
        for hook in self._hooks:
            hook.remove()
        self._recover()

    def _begin(self, _: fl.Chain, inputs: tuple[Tensor]) -> None:
        self._recover()
        self.check_latents(inputs[0])
        self.check_reference_only_control(rows=len(inputs[0]))
        self._residuals = get_residuals(self._unet)

    def _end(self, *_: Any) -> None:
        self._residuals = None

    def _recover(self) -> None:
        """Forget what an interrupted pass has left, unless others have been set since."""
        if self._residuals is not None and get_residuals(self._unet) is self._residuals:
            reset_residuals(self._unet)
        self._residuals = None

    def check_latents(self, x: Tensor) -> None:
        """Check the rows of latents before anything is computed.

        Args:
            x: The latents.

        Raises:
            ValueError: If the latents are not of rank 4, if their rows are not laid out as `set_size` says, or if
                targets do not fit the references that were recorded.
        """
        sharing = self._sharing
        if x.ndim != 4:
            raise ValueError(
                "expected latents of rank 4 (rows, channels, height, width), got a tensor of"
                f" rank {x.ndim} and shape {tuple(x.shape)}"
            )
        if not sharing.is_on:
            return
        sharing.check_halves(len(x))
        if sharing.mode.name == "replay":
            for bank in sharing.mode.banks:
                bank.check_targets(x)
            return
        mask = sharing.mask
        if sharing.mode.name == "record":
            (bank,) = sharing.mode.banks
            bank.latents_shape, mask = x.shape, bank.mask
        else:
            sharing.group_size(len(x))
            if len(x) != self._checked_rows or sharing.options is not self._checked_options:
                check_halves(x, sharing.options.set_size)  # once: looking at latents makes a GPU wait
                self._checked_rows, self._checked_options = len(x), sharing.options
        if mask is not None:
            mask.fit(*x.shape[-2:])

    def check_reference_only_control(self, rows: int) -> None:
        """Check that reference-only control, if it is there, has been there before, and gets what it can take.

        Args:
            rows: The number of rows in the batch.

        Raises:
            ValueError: If it was injected after the adapter, whose layers its copies of self-attentions go without, or
                if there are other rows than the guidance halves of one image, which are all that it knows.
        """
        parents = self._unet.get_parents()
        if not has_reference_only_control(parents):
            return
        if has_reference_only_control(parents[: parents.index(self._adapter)]):
            raise ValueError(
                "expected reference-only control to be injected before StyleAligned, got it after: eject both"
            )
        is_batch = self._sharing.mode.name == "batch"
        if is_batch or rows > 2:
            raise ValueError(
                "expected single images beside reference-only control, each in a pass of its own within record() or"
                f" replay(), got a batch of {rows} rows{' without them' if is_batch else ''}"
            )


def has_reference_only_control(parents: Sequence[fl.Chain]) -> bool:
    """Return whether reference-only control is among the parents of a U-Net."""
    return any(isinstance(parent, ReferenceOnlyControlAdapter) for parent in parents)


def check_halves(x: Tensor, set_size: int | None) -> None:
    """Check that `set_size` does not take guidance halves for sets, or sets for guidance halves.

    Args:
        x: The latents.
        set_size: The number of images in a set, the reference included. None means that the batch holds the two
            guidance halves of a single set.

    Raises:
        ValueError: If `set_size` is None and the halves of the batch differ (it is no classifier-free guidance batch of
            one set), or if it is one and `set_size` takes both halves for a set.
    """
    are_equal = len(x) % 2 == 0 and torch.equal(*x.chunk(2))
    if set_size is None and not are_equal:
        raise ValueError(
            f"got a batch of {len(x)} rows whose halves differ, expected the same latents twice, as in"
            " classifier-free guidance with one set: without guidance, or for several sets in one batch, give the"
            " adapter a set_size"
        )
    if set_size == len(x) and are_equal and not (x == x[:1]).all():
        raise ValueError(
            f"got a batch of {len(x)} rows whose halves are equal, as in classifier-free guidance, and a set_size"
            f" of {set_size}: expected {len(x) // 2}, or targets would follow the other half's reference"
        )
