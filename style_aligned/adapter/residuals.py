"""What a pass of a U-Net leaves in its context when it does not end."""

from refiners.fluxion import layers as fl
from torch import Tensor

Residuals = list[Tensor | float]


class Passes:
    """The passes of a U-Net, of which one may have been interrupted.

    It tells what such a pass has left from the residuals of a caller, who may put some into the context before a pass.
    """

    def __init__(self) -> None:
        """Initialize the Passes."""
        self._on_the_way: Residuals | None = None

    def begin(self, unet: fl.Chain) -> None:
        """Have a pass begin as on a fresh U-Net, but with the residuals that were set since the one before."""
        self.recover(unet)
        self._on_the_way = get_residuals(unet)

    def end(self) -> None:
        """Have a pass end."""
        self._on_the_way = None

    def recover(self, unet: fl.Chain) -> None:
        """Forget what an interrupted pass has left, if there is any."""
        if self._on_the_way is not None and get_residuals(unet) is self._on_the_way:
            reset_residuals(unet)
        self._on_the_way = None


def get_residuals(unet: fl.Chain) -> Residuals | None:
    """Return the residuals in the context of a U-Net. None where a chain has none."""
    context = unet.provider.get_context("unet")
    return context["residuals"] if context else None


def reset_residuals(unet: fl.Chain) -> None:
    """Forget the residuals that an interrupted pass has left in the context of a U-Net.

    Refiners' U-Nets gather their skip connections in the context `unet`, add to what is there, and forget it at the end
    of the pass. An exception in the middle (Ctrl-C, or no memory left) leaves them there, and the next pass would add
    to them. Call it between passes: adapters such as ControlLora put theirs there within one. Those that you have set
    for the next pass are forgotten too.

    Args:
        unet: The U-Net. Nothing happens to a chain that has no residuals in its context.
    """
    residuals = get_residuals(unet)
    if residuals and any(isinstance(residual, Tensor) or residual != 0 for residual in residuals):
        unet.set_context("unet", {"residuals": [0.0] * len(residuals)})
