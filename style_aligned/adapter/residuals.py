"""What a pass of a U-Net leaves in its context when it does not end."""

from refiners.fluxion import layers as fl
from torch import Tensor

Residuals = list[Tensor | float]


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
