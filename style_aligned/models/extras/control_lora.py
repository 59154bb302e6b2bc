"""ControlLoras of SDXL as Stability AI publishes them, as Refiners' own adapters."""

from collections import defaultdict
from collections.abc import Mapping
from copy import copy
from pathlib import Path

from refiners.fluxion import layers as fl
from refiners.fluxion.adapters.lora import LoraAdapter
from refiners.foundationals.latent_diffusion import StableDiffusion_XL
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.control_lora import ControlLoraAdapter
from torch.nn import Parameter

from style_aligned.models.checkpoints.architectures import Architecture
from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.files import StoredTensor
from style_aligned.models.checkpoints.initialization import NoInitialization
from style_aligned.models.extras.control_keys import CONTROL_MODEL, control_modules
from style_aligned.models.extras.lora import find_layer, make_lora
from style_aligned.models.model import Model

MARK = "lora_controlnet"  # an empty tensor, which tells such a file from others
OWN = ("zero_convs.", "middle_block_out.", "input_hint_block.")  # layers that a U-Net has not


def load_control_lora(
    model: Model,
    file: Path,
    tensors: Mapping[str, StoredTensor],
    architecture: Architecture,
    *,
    scale: float,
    name: str,
) -> ControlLoraAdapter:
    """Load a ControlLora. It is not injected.

    It runs a copy of the way down and of the middle of the U-Net, which shares the weights, with a LoRA on each layer.
    Published files have biases and norms of its own too, which Refiners' own loader leaves out.

    Args:
        model: The model. LoRAs that are in it count in the copy too.
        file: The file.
        tensors: Its tensors, by name.
        architecture: What the model is made of.
        scale: How strong the control is.
        name: What tells it from other control models in the same model.

    Raises:
        CheckpointError: If it is for another model, or damaged.
    """
    what = f"a ControlLora for {architecture.name}"
    if not isinstance(model, StableDiffusion_XL):
        raise CheckpointError(
            f"{file}: a ControlLora, which Refiners has for SDXL alone; expected a ControlNet or a T2I-Adapter for"
            f" {architecture.name}"
        )
    names = control_modules(architecture, "ZeroConvolution")
    modules = {original.removeprefix(CONTROL_MODEL): ours for ours, _, original in names}
    layers: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        if key != MARK:
            layer, _, parameter = key.rpartition(".")
            layers[layer][parameter] = tensor
    with NoInitialization():
        adapter = ControlLoraAdapter(name, model.unet, scale=scale)
    first = adapter.control_lora.layer(("DownBlocks", 0), fl.Chain)
    residual = first.layer("ZeroConvolution", fl.Chain)
    first.remove(residual)  # Refiners takes the first residual before the control image is in it
    first.append(residual)
    for layer, stored in layers.items():
        if layer not in modules:
            raise CheckpointError(f"{file}: {next(iter(stored.values())).key!r} is no tensor of {what}")
        target, parent = find_layer(adapter.control_lora, modules[layer])
        if layer.startswith(OWN):
            _check(stored, target, file, what)
            if len(stored) < 2:
                raise CheckpointError(f"{file}: a weight or bias of {layer!r} is missing; expected {what}")
            target.load_state_dict({parameter: tensor.read() for parameter, tensor in stored.items()})
            target.requires_grad_(requires_grad=False)
        else:
            _change(target, parent, stored, f"control_lora_{name}", file, what)
    for layer in modules:
        if layer.startswith(OWN) and layer not in layers:
            raise CheckpointError(f"{file}: {layer!r} is missing; expected {what}")
    return adapter


def _change(
    target: fl.WeightedModule, parent: fl.Chain, stored: dict[str, StoredTensor], name: str, file: Path, what: str
) -> None:
    """Change a layer of the copy of the U-Net: by a LoRA, and by weights of its own. The U-Net stays as it is."""
    pair = {role: stored.pop(role) for role in ("down", "up") if role in stored}
    if len(pair) == 1:
        (tensor,) = pair.values()
        raise CheckpointError(f"{file}: {tensor.key!r} is one of two, the other is missing; expected {what}")
    _check(stored, target, file, what)
    layer = target
    if stored:
        layer = copy(target)  # the weights themselves are shared
        vars(layer)["_parameters"] = {**target._parameters}  # pyright: ignore[reportPrivateUsage]
        for parameter, tensor in stored.items():
            values = tensor.read().to(device=target.device, dtype=target.dtype)
            setattr(layer, parameter, Parameter(values, requires_grad=False))
        parent.replace(target, layer)
    if pair:
        lora = make_lora(name, pair["down"].read().float(), pair["up"].read().float(), layer)
        if lora is None:
            raise CheckpointError(
                f"{file}: {pair['down'].key!r} of shape {pair['down'].shape} and {pair['up'].key!r} of shape"
                f" {pair['up'].shape} do not fit a weight of shape {tuple(target.weight.shape)} of {what}"
            )
        if isinstance(parent, LoraAdapter):
            parent.add_lora(lora)
        else:
            LoraAdapter(layer, lora).inject(parent)


def _check(stored: Mapping[str, StoredTensor], target: fl.WeightedModule, file: Path, what: str) -> None:
    """Check that a layer has these parameters, of these shapes."""
    expected = {name: tuple(parameter.shape) for name, parameter in target.named_parameters()}
    for parameter, tensor in stored.items():
        if tuple(tensor.shape) != expected.get(parameter):
            suffix = f", {expected[parameter]} is expected" if parameter in expected else ""
            raise CheckpointError(f"{file}: {tensor.key!r} of shape {tensor.shape} is no tensor of {what}{suffix}")
