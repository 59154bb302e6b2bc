"""From weights on disk to a model, at the speed of the disk."""

from pathlib import Path

import torch
from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion import StableDiffusion_1, StableDiffusion_XL
from torch import Tensor, device as Device, dtype as DType

from style_aligned.models.checkpoints.autoencoder import PreciseAutoencoder, autoencoder_dtype
from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.files import MemoryMaps
from style_aligned.models.checkpoints.other_autoencoder import with_autoencoder
from style_aligned.models.checkpoints.plan import MODEL_PARTS, Weight, make_plan
from style_aligned.models.checkpoints.sources import Checkpoint, open_checkpoint
from style_aligned.models.devices import find_device
from style_aligned.words import show

MODEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def load_model(
    name_or_path: str | Path = "mini",
    *,
    device: Device | str = "auto",
    dtype: DType | str = "auto",
    vae: str | Path | None = None,
    timestep_spacing: str | None = None,
    prediction_type: str | None = None,
    rescale_betas_zero_snr: bool | None = None,
) -> StableDiffusion_XL | StableDiffusion_1:
    """Load a model.

    No weight is initialised in vain. Weights that are stored in the type asked for stay on disk until they are used:
    they are memory-mapped, so leave the files in place while the model lives.

    Args:
        name_or_path: `"mini"` for the embedded model, a diffusers folder, a single file with the original names, a
            folder in Refiners' format, or a name on the Hugging Face hub.
        device: The PyTorch device to use. `"auto"` takes CUDA, or else MPS, or else the CPU.
        dtype: The type of the weights: float32, float16 or bfloat16. `"auto"` takes float16, or float32 on the CPU and
            for the embedded model. With float16, the autoencoder, which would overflow, is in float32.
        vae: An autoencoder for a checkpoint without one, or in the place of its own: a file, a folder of diffusers or
            Refiners, a name on the hub, or anything that holds a whole model.
        timestep_spacing: Where the steps of the model's solver are: `"leading"`, `"trailing"` (for few steps: Turbo,
            Lightning, Hyper) or `"linspace"`. None takes what the checkpoint says, and else `"leading"`.
        prediction_type: What the U-Net predicts: `"epsilon"` (noise) or `"v_prediction"` (velocity). None takes what
            the checkpoint says, and else noise.
        rescale_betas_zero_snr: Whether the noise schedule ends in pure noise. None takes what the checkpoint says.

    Returns:
        The model, with the noise schedule that it was trained for, and with two attributes of what it asks for beyond
        its weights: `prediction_type`, and `force_zeros_for_empty_prompt` (see `embed`).

    Raises:
        CheckpointError: If that cannot be loaded, naming the file and the first tensor at fault.
        ValueError: For another type, a device that is not there, or the schedule of the embedded model.

    Example:
        ```py
        from style_aligned import load_model

        mini = load_model("mini", dtype="bfloat16")  # or "sd_xl_base_1.0.safetensors", on "cuda"
        assert str(mini.unet.dtype) == "torch.bfloat16"
        ```
    """
    if not isinstance(name_or_path, str | Path) or not str(name_or_path):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise CheckpointError(f"expected the name or the path of a model, such as 'mini', got {show(name_or_path)}")
    is_mini = str(name_or_path) == "mini"
    device = find_device(device)
    dtype = _find_dtype(dtype, device, is_mini)
    schedule = {
        "timestep_spacing": timestep_spacing,
        "prediction_type": prediction_type,
        "rescale_betas_zero_snr": rescale_betas_zero_snr,
    }
    if is_mini:
        from style_aligned.models.mini import load_mini

        if given := [name for name, value in {"vae": vae, **schedule}.items() if value is not None]:
            raise ValueError(f"the embedded model is complete, with one schedule; expected no {given[0]}")
        return load_mini(device=device, dtype=dtype)
    prefer_half = dtype != torch.float32
    checkpoint = open_checkpoint(name_or_path, prefer_half=prefer_half, **schedule)
    if vae is not None:
        checkpoint = with_autoencoder(checkpoint, vae, prefer_half=prefer_half)
    return load_checkpoint(checkpoint, device=device, dtype=dtype)


def _find_dtype(dtype: DType | str, device: Device, is_mini: bool) -> DType:
    if dtype == "auto":
        return torch.float32 if is_mini or device.type == "cpu" else torch.float16
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in MODEL_DTYPES:
        raise ValueError(f"dtype is {dtype}; expected one of {', '.join(map(str, MODEL_DTYPES))}, or 'auto'")
    return found


def load_checkpoint(
    checkpoint: Checkpoint, *, device: Device | str = "cpu", dtype: DType = torch.float32
) -> StableDiffusion_XL | StableDiffusion_1:
    """Load a model from an opened checkpoint; see `load_model`."""
    device = Device(device)
    model = checkpoint.architecture.build()
    plan = make_plan(checkpoint, model)
    maps = MemoryMaps()
    states: dict[str, dict[str, Tensor]] = {part: {} for part in MODEL_PARTS}
    for weight in plan.weights:
        weight_dtype = autoencoder_dtype(dtype) if weight.part == "lda" else dtype
        states[weight.part][weight.part_key] = _load(weight, maps, device=device, dtype=weight_dtype)
    for part, state in states.items():
        getattr(model, part).load_state_dict(state, assign=True)

    assert isinstance(model.lda, PreciseAutoencoder)
    model.lda.latents_dtype = dtype
    if checkpoint.encoder_scale is not None:
        model.lda.encoder_scale = checkpoint.encoder_scale
    for norm in model.lda.layers(fl.GroupNorm):
        norm.eps = 1e-6  # as it was trained; Refiners builds some with 1e-5
    model.solver = checkpoint.schedule.solver().to(device=device)
    model.device, model.dtype = device, dtype
    model.force_zeros_for_empty_prompt = checkpoint.force_zeros_for_empty_prompt
    model.prediction_type = checkpoint.schedule.prediction_type
    return model


def _load(weight: Weight, maps: MemoryMaps, device: Device, dtype: DType) -> Tensor:
    if weight.stored.dtype == dtype and weight.stored.scale is None:
        return weight.tensor(maps.tensor).to(device=device)
    # a map's pages would stay in memory beside the converted weight, so this one goes through a buffer of its own
    values = weight.tensor(lambda stored: stored.read()).to(device=device, dtype=dtype)
    if dtype == torch.float16 and not values.isfinite().all():
        is_damaged = not weight.tensor(lambda stored: stored.read()).isfinite().all()
        reason = "holds NaN or infinity" if is_damaged else "exceeds the range of float16; use bfloat16 or float32"
        raise CheckpointError(f"{weight.stored.path}: {weight.stored.key!r} {reason}")
    return values
