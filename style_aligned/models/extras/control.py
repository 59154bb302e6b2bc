"""ControlNets, ControlLoras and T2I-Adapters as they are published, as Refiners' own adapters."""

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from PIL import Image
from refiners.fluxion import layers as fl
from refiners.fluxion.utils import image_to_tensor
from refiners.foundationals.latent_diffusion import (
    SD1ControlnetAdapter,
    SD1T2IAdapter,
    SDXLT2IAdapter,
    StableDiffusion_1,
    StableDiffusion_XL,
)
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.control_lora import ControlLoraAdapter
from refiners.foundationals.latent_diffusion.t2i_adapter import ConditionEncoder, ConditionEncoderXL
from torch import Tensor

from style_aligned.models.checkpoints.architectures import Architecture
from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.files import StoredTensor, read_header
from style_aligned.models.checkpoints.initialization import NoInitialization
from style_aligned.models.checkpoints.sources import expand_home
from style_aligned.models.contexts import complete_rows
from style_aligned.models.extras.control_keys import CONTROL_MODEL, control_modules
from style_aligned.models.extras.control_lora import load_control_lora
from style_aligned.models.extras.lora import architecture_of, find_layer
from style_aligned.models.model import Model

ControlAdapter = SD1ControlnetAdapter | SD1T2IAdapter | SDXLT2IAdapter | ControlLoraAdapter

EXPECTED = "expected a ControlNet of Stable Diffusion 1.5, a ControlLora of SDXL, or a T2I-Adapter"
_CONTROLS: "WeakKeyDictionary[Model, list[ControlModel]]" = WeakKeyDictionary()
_NUMBERS = count()  # which tell one control model from another of the same file
DOWNSCALES = {StableDiffusion_1: 8, StableDiffusion_XL: 16}  # of a T2I-Adapter's first layer


def load_control_model(
    model: Model, path: str | Path, *, scale: float = 1.0, name: str | None = None
) -> ControlAdapter:
    """Load a control model for a model. It is not injected.

    For Stable Diffusion 1.5 it is a ControlNet, for SDXL a ControlLora, for both of them a T2I-Adapter.

    `inject()` it and give it the control image, with values from 0 to 1 and of the size of the images: a ControlNet by
    `set_controlnet_condition(image)`, a ControlLora by `set_condition(image)`, a T2I-Adapter by
    `set_condition_features(compute_condition_features(image))`.
    `generate` uses it for the reference and for all images.

    Args:
        model: The model.
        path: The file, in diffusers' names, or in those of the ControlNet's authors.
        scale: How strong the control is.
        name: What tells it from other control models in the same model. None takes the name of the file.

    Returns:
        Refiners' adapter.

    Raises:
        CheckpointError: If it is of another kind, or for another model.
        ValueError: For the embedded model, for which there are none.
    """
    file, architecture = expand_home(path), architecture_of(model)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; {EXPECTED}")
    name = _name_of(file) if name is None else name
    tensors = {tensor.key.removeprefix("adapter."): tensor for tensor in read_header(file)[0]}
    if any(key.startswith(("controlnet_", f"{CONTROL_MODEL}zero_convs")) for key in tensors):
        return _load_controlnet(model, file, tensors, architecture, scale, name)
    if "lora_controlnet" in tensors:
        return load_control_lora(model, file, tensors, architecture, scale=scale, name=name)
    if "body.0.resnets.0.block1.weight" in tensors and "conv_in.weight" in tensors:
        return _load_t2i_adapter(model, file, tensors, architecture, scale, name)
    raise CheckpointError(f"{file}: no control model of a known kind; {EXPECTED}")


class ControlModel:
    """A control model from a file, with a picture for each image.

    It is in the U-Net for passes of images with pictures alone: the reference is drawn without it.
    """

    def __init__(self, model: Model, path: str | Path, *, scale: float = 1.0) -> None:
        """Load the control model.

        Args:
            model: The model.
            path: The file.
            scale: How strong the control is.

        Raises:
            CheckpointError: If it is no control model, or does not fit the model.
        """
        name = f"{_name_of(Path(path))}_{next(_NUMBERS)}"
        self._adapter: Any = load_control_model(model, path, scale=scale, name=name)
        self._options: dict[str, Any] = {"device": model.device, "dtype": model.dtype}
        self._described = {"file": Path(path).name, "scale": scale}

    def describe(self) -> dict[str, Any]:
        """Return what has to be known of it to draw the same again."""
        return dict(self._described)

    def condition(self, picture: Image.Image) -> tuple[Float[Tensor, "1 channels height width"], ...]:
        """Return what the U-Net takes of a picture.

        Args:
            picture: The picture, of the size of the image.
        """
        if isinstance(self._adapter, SD1ControlnetAdapter | ControlLoraAdapter):
            return (image_to_tensor(picture.convert("RGB"), **self._options),)
        encoder: ConditionEncoder = self._adapter.condition_encoder
        colors = (
            encoder.layer("Conv2d", fl.Conv2d).weight.shape[1]
            // encoder.layer(0, fl.PixelUnshuffle).downscale_factor ** 2
        )
        tensor = image_to_tensor(picture.convert("RGB" if colors == 3 else "L"), **self._options)
        return tuple(self._adapter.compute_condition_features(tensor))

    @contextmanager
    def on(self, conditions: Sequence[tuple[Tensor, ...]], *, halves: int) -> Generator[None]:
        """Have the images of a batch follow their pictures.

        Args:
            conditions: What `condition` returns for each image.
            halves: The number of guidance halves.
        """
        rows = tuple(complete_rows(torch.cat(parts * halves)) for parts in zip(*conditions, strict=True))
        self._adapter.inject()
        try:
            set_condition(self._adapter, rows)
            yield
        finally:
            self._adapter.eject()


def set_condition(adapter: ControlAdapter, rows: Sequence[Tensor]) -> None:
    """Give an injected control model what the U-Net takes of its pictures, and leave others what they have.

    Refiners' own setters replace the whole context, which control models of one kind share.

    Args:
        adapter: The control model.
        rows: What the U-Net takes of the pictures: the condition of a ControlNet or a ControlLora, or the features of a
            T2I-Adapter.
    """
    if isinstance(adapter, ControlLoraAdapter):
        adapter.set_condition(rows[0])
        return
    if isinstance(adapter, SD1ControlnetAdapter):
        context, value = "controlnet", {f"condition_{adapter.name}": rows[0]}
    else:
        context, value = "t2iadapter", {f"condition_features_{adapter.name}": tuple(rows)}
    adapter.set_context(context, {**adapter.use_context(context), **value})


def controls_of(model: Model) -> list[ControlModel]:
    """Return the control models that `Extras` has put beside a model, in their order."""
    return list(_CONTROLS.get(model, ()))


def add_controls(model: Model, controls: Sequence[ControlModel]) -> None:
    """Put control models beside a model, behind those that are there."""
    _CONTROLS.setdefault(model, []).extend(controls)


def remove_controls(model: Model, controls: Sequence[ControlModel]) -> None:
    """Take control models away from a model."""
    _CONTROLS[model] = [control for control in controls_of(model) if control not in controls]


def _name_of(file: Path) -> str:
    return re.sub(r"\W", "_", file.stem)


def _load_controlnet(
    model: Model,
    file: Path,
    tensors: Mapping[str, StoredTensor],
    architecture: Architecture,
    scale: float,
    name: str,
) -> SD1ControlnetAdapter:
    if not isinstance(model, StableDiffusion_1):
        raise CheckpointError(
            f"{file}: a ControlNet, which Refiners has for Stable Diffusion 1.5 alone; expected a ControlLora or a"
            " T2I-Adapter for SDXL"
        )
    is_original = any(key.startswith(CONTROL_MODEL) for key in tensors)
    names = control_modules(architecture, "Passthrough")
    modules = {(original if is_original else diffusers): ours for ours, diffusers, original in names}
    with NoInitialization():
        adapter = SD1ControlnetAdapter(model.unet, name=name, scale=scale)
    _load(adapter.controlnet, file, tensors, modules, f"a ControlNet for {architecture.name}")
    return adapter


def _load_t2i_adapter(
    model: Model,
    file: Path,
    tensors: Mapping[str, StoredTensor],
    architecture: Architecture,
    scale: float,
    name: str,
) -> SD1T2IAdapter | SDXLT2IAdapter:
    is_xl = isinstance(model, StableDiffusion_XL)
    downscale = DOWNSCALES[StableDiffusion_XL if is_xl else StableDiffusion_1]
    first, second, third, fourth = (tensors[f"body.{level}.resnets.0.block1.weight"].shape[0] for level in range(4))
    channels = (first, second, third, fourth)
    blocks = len({match[1] for key in tensors if (match := re.match(r"body\.0\.resnets\.(\d+)\.", key))})
    colors = tensors["conv_in.weight"].shape[1] / downscale**2
    widths = _block_widths(model)
    if colors not in (1, 3) or channels != widths:
        raise CheckpointError(
            f"{file}: a T2I-Adapter with blocks of {channels} channels; expected {widths}, as of {architecture.name}"
        )
    options: dict[str, Any] = {"device": model.device, "dtype": model.dtype}
    kind = ConditionEncoderXL if is_xl else ConditionEncoder
    with NoInitialization():
        encoder = kind(int(colors), channels, blocks, downscale, **options)
    modules = {"conv_in": "Conv2d"}
    for level, (before, after) in enumerate(zip((channels[0], *channels), channels, strict=False)):
        block = f"StatefulResidualBlocks_{level + 1}.ResidualBlocks"
        if before != after:
            modules[f"body.{level}.in_conv"] = f"{block}.Conv2d"
        for i in range(blocks):
            inner = "ResidualBlock" if blocks == 1 else f"ResidualBlock_{i + 1}"
            for convolution in (1, 2):
                theirs = f"body.{level}.resnets.{i}.block{convolution}"
                modules[theirs] = f"{block}.Chain.{inner}.Conv2d_{convolution}"
    _load(encoder, file, tensors, modules, f"a T2I-Adapter for {architecture.name}")
    adapter: Any = SDXLT2IAdapter if is_xl else SD1T2IAdapter
    return adapter(model.unet, name, encoder, scale=scale)


def _block_widths(model: Model) -> tuple[int, ...]:
    """Return the channels of the four places that a T2I-Adapter adds to."""
    blocks = (2, 5, 8, 8) if isinstance(model, StableDiffusion_XL) else (2, 5, 8, 11)  # the last of SDXL is the middle
    layers = (find_layer(model.unet, f"DownBlocks.Chain_{n}.ResidualBlock.Chain.Conv2d")[0] for n in blocks)
    return tuple(layer.weight.shape[0] for layer in layers)


def _load(
    module: fl.Chain, file: Path, tensors: Mapping[str, StoredTensor], modules: Mapping[str, str], what: str
) -> None:
    """Read the tensors of a file into a module, by Refiners' names of its layers."""
    weights: dict[str, Tensor] = {}
    state = module.state_dict()
    theirs = {ours: name for name, ours in modules.items()}
    for key, tensor in tensors.items():
        name, _, parameter = key.rpartition(".")
        ours = f"{modules.get(name)}.{parameter}"
        if ours not in state or tensor.shape != state[ours].shape:
            expected = f", {tuple(state[ours].shape)} is expected" if ours in state else ""
            raise CheckpointError(f"{file}: {key!r} of shape {tensor.shape} is no tensor of {what}{expected}")
        weights[ours] = tensor.read()
    if missing := next((key for key in state if key not in weights), None):
        ours, _, parameter = missing.rpartition(".")
        raise CheckpointError(f"{file}: {f'{theirs[ours]}.{parameter}'!r} is missing; expected {what}")
    module.load_state_dict(weights)
