"""The names of the layers of control models, in Refiners and in files."""

from collections.abc import Iterator
from dataclasses import replace

from style_aligned.models.checkpoints.architectures import Architecture
from style_aligned.models.checkpoints.keys import UNET, unet_modules

CONTROL_MODEL = "control_model."  # what a ControlNet's own files put before all names
HINT_LAYERS = 8  # of the encoder of the control image


def control_modules(architecture: Architecture, residual: str) -> Iterator[tuple[str, str, str]]:
    """Name the layers of a ControlNet or a ControlLora in Refiners, in diffusers and in its authors' files.

    It is a copy of the way down and of the middle of the U-Net, with an encoder of the control image, and a convolution
    for each residual.

    Args:
        architecture: What its model is made of.
        residual: The class that Refiners keeps these convolutions in.
    """
    structure = replace(architecture.unet, middle="MiddleBlock")  # which lies deeper in a U-Net
    for names in unet_modules(structure):
        refiners = names.refiners.removeprefix(f"{UNET.refiners}.")
        if refiners.startswith(("TimestepEncoder", "DownBlocks", "MiddleBlock")):
            diffusers = names.diffusers.removeprefix(f"{UNET.diffusers}.")
            yield refiners, diffusers, CONTROL_MODEL + names.original.removeprefix(f"{UNET.original}.")
    encoder = "DownBlocks.Chain_1.Residual.ConditionEncoder"
    for layer in range(HINT_LAYERS):  # the first alone, then two for each of three halvings, and the last alone
        block, place = divmod(layer + 1, 2)
        inner = {0: "Chain_1.Conv2d", HINT_LAYERS - 1: "Conv2d"}.get(layer, f"Chain_{block + 1}.Conv2d_{place + 1}")
        theirs = {0: "conv_in", HINT_LAYERS - 1: "conv_out"}.get(layer, f"blocks.{layer - 1}")
        original = f"{CONTROL_MODEL}input_hint_block.{2 * layer}"
        yield f"{encoder}.{inner}", f"controlnet_cond_embedding.{theirs}", original
    for n in range(3 * len(structure.depths)):
        ours = f"DownBlocks.Chain_{n + 1}.{residual}.Conv2d"
        yield ours, f"controlnet_down_blocks.{n}", f"{CONTROL_MODEL}zero_convs.{n}.0"
    yield f"MiddleBlock.{residual}.Conv2d", "controlnet_mid_block", f"{CONTROL_MODEL}middle_block_out.0"
