"""A LoRA from a file, in a model."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.adapters.lora import Conv2dLora, LinearLora, Lora, LoraAdapter
from refiners.fluxion.layers.chain import generate_unique_names
from refiners.foundationals.latent_diffusion import StableDiffusion_1, StableDiffusion_XL
from torch import Tensor

from style_aligned.models.checkpoints.architectures import STABLE_DIFFUSION_1, STABLE_DIFFUSION_XL, Architecture
from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.sources import expand_home
from style_aligned.models.extras.lora_keys import LoraWeights, read_lora
from style_aligned.models.model import beside


class FileLora:
    """A LoRA from a file, as Refiners' own `Lora` layers.

    Nothing changes before `inject()`. Afterwards Refiners' `SDLoraManager` knows the layers by their name, and the
    scale can be set at any time. LoRAs go in before other adapters that copy the layers, such as Refiners' own of image
    prompts, and out in any order. `with FileLora(model, path):` injects it for a while.

    Attributes:
        name: The name of the layers.
        path: The file.
    """

    def __init__(
        self,
        model: StableDiffusion_XL | StableDiffusion_1,
        path: str | Path,
        *,
        scale: float = 1.0,
        name: str | None = None,
    ) -> None:
        """Initialize the FileLora.

        Args:
            model: The model.
            path: A file in the names of kohya's scripts, of diffusers or of PEFT, or a folder with one.
            scale: How strong it is; the alphas of the file count beside it.
            name: The name of the layers. None means that of the file.

        Raises:
            CheckpointError: If the file is no LoRA for this model, with the first tensor at fault.
        """
        self.path = expand_home(path)
        self.name = self.path.stem if name is None else name
        self._scale = float(scale)
        self._model = model
        self._stack = ExitStack()
        self._adapters: list[LoraAdapter] = []
        self._loras: list[tuple[str, fl.Chain, Lora[Any]]] = []
        architecture = architecture_of(model)
        for layer, weights in read_lora(self.path, architecture).items():
            part, _, inner = layer.partition(".")
            chain: fl.Chain = getattr(model, part)
            target, _ = find_layer(chain, inner)
            self._loras.append((inner, chain, self._build(weights, target, layer, architecture)))

    @property
    def scale(self) -> float:
        """How strong it is."""
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._scale = float(value)
        for _, _, lora in self._loras:
            lora.scale = self._scale

    @property
    def is_injected(self) -> bool:
        """Whether it is in the model."""
        return bool(self._adapters)

    def describe(self) -> dict[str, Any]:
        """Return what has to be known to draw the same again."""
        return {"kind": "lora", "file": self.path.name, "scale": self.scale}

    def inject(self) -> "FileLora":
        """Put it into the model.

        Raises:
            ValueError: If it is there already, or another of the same name is.
        """
        if self.is_injected:
            raise ValueError(f"expected the LoRA {self.name!r} not to be injected, but it is")
        places = [(*find_layer(chain, inner), lora) for inner, chain, lora in self._loras]
        if any(isinstance(parent, LoraAdapter) and self.name in parent.names for _, parent, _ in places):
            raise ValueError(f"expected a LoRA of another name than {self.name!r}, which the model has already")
        for target, parent, lora in places:
            if isinstance(parent, LoraAdapter):
                parent.add_lora(lora)
                self._adapters.append(parent)
            else:
                self._adapters.append(LoraAdapter(target, lora).inject(parent))
        self._stack.enter_context(beside(self._model, self.describe))
        return self

    def eject(self) -> None:
        """Take it out of the model."""
        for adapter in self._adapters:
            adapter.remove_lora(self.name)
            if not adapter.names:
                adapter.eject()
        self._adapters = []
        self._stack.close()

    def __enter__(self) -> "FileLora":
        return self.inject()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.eject()

    def _build(
        self, weights: LoraWeights, target: fl.WeightedModule, layer: str, architecture: Architecture
    ) -> Lora[Any]:
        down, up = weights.read()
        stored = weights.tensors["down"]
        lora = make_lora(self.name, down, up, target)
        if lora is None:
            raise CheckpointError(
                f"{self.path}: {stored.key!r} of shape {stored.shape} does not fit the layer {layer!r} of"
                f" {architecture.name}, whose weight has shape {tuple(target.weight.shape)}"
            )
        lora.scale = self._scale
        return lora


def make_lora(name: str, down: Tensor, up: Tensor, target: fl.WeightedModule) -> Lora[Any] | None:
    """Make a LoRA of Refiners for a layer. None if it does not fit.

    Args:
        name: Its name.
        down: The first matrix or convolution.
        up: The second one.
        target: The layer.
    """
    weight = target.weight
    if isinstance(target, fl.Linear):
        down, up = _as_matrix(down), _as_matrix(up)
    else:
        down, up = (values if values.ndim == 4 else values[:, :, None, None] for values in (down, up))
    kernels = ((), ()) if weight.ndim == 2 else (weight.shape[2:], (1, 1))
    fits = down.ndim == up.ndim == weight.ndim and (up.shape[0], down.shape[1]) == tuple(weight.shape[:2])
    fits = fits and up.shape[1] == down.shape[0] and tuple(down.shape[2:]) in kernels and up.shape[2:].numel() == 1
    if not fits:
        return None
    kind = LinearLora if isinstance(target, fl.Linear) else Conv2dLora
    lora: Lora[Any] = kind.from_weights(name, down=down, up=up)
    if isinstance(target, fl.Conv2d):
        lora.down.stride = target.stride
        lora.down.padding = target.padding if down.shape[2] > 1 else (0, 0)
    for parameter in lora.parameters():
        parameter.requires_grad_(False)
    return lora.to(device=target.device, dtype=target.dtype)


def architecture_of(model: StableDiffusion_XL | StableDiffusion_1) -> Architecture:
    """Return what a model is made of, for names of its layers.

    Raises:
        ValueError: For the embedded model, for which there are no published files.
    """
    if type(model).__name__ == "Mini":
        raise ValueError("the embedded model takes no LoRA, embedding, image prompt or control model from a file")
    return STABLE_DIFFUSION_XL if isinstance(model, StableDiffusion_XL) else STABLE_DIFFUSION_1


def find_layer(chain: fl.Chain, path: str) -> tuple[fl.WeightedModule, fl.Chain]:
    """Find a layer by the path that it has in a chain without LoRAs.

    Args:
        chain: The chain, which may have LoRAs.
        path: The path, with dots.

    Returns:
        The layer and its parent, which is a `LoraAdapter` where the layer has LoRAs.

    Raises:
        ValueError: If another adapter is in the way.
    """
    parent: fl.Chain = chain
    module: fl.Module = chain
    for name in path.split("."):
        if not isinstance(module, fl.Chain):
            break
        parent = module
        plain = tuple(child.target if isinstance(child, LoraAdapter) else child for child in module)
        index = list(generate_unique_names(plain)).index(name) if name in generate_unique_names(plain) else None
        if index is None:
            raise ValueError(f"expected LoRAs to be injected before other adapters: {path!r} is not where it was")
        module = module[index]
    if isinstance(module, LoraAdapter):
        parent, module = module, module.target
    assert isinstance(module, fl.WeightedModule)
    return module, parent


def _as_matrix(values: Tensor) -> Tensor:
    """Return a convolution by one pixel as the matrix that it is."""
    return values.flatten(start_dim=1) if values.ndim == 4 and values.shape[2:] == torch.Size((1, 1)) else values
