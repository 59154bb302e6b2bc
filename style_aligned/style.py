"""A style: the reference image of a set, as the trajectory that leads to it, in a file of its own."""

import hashlib
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from refiners.foundationals.latent_diffusion import StableDiffusion_XL
from refiners.foundationals.latent_diffusion.solvers import Solver
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from style_aligned.adapter import StyleAlignedAdapter
from style_aligned.denoising import Model, TextEmbedding, Trajectory, embed, predict_noise, sample_noise

FORMAT = 1
MAX_HEADER = 1 << 20  # bytes
MAX_ELEMENTS = 1 << 28
PREVIEW = 128  # pixels
OPTIONS = (
    "adain_queries",
    "adain_keys",
    "adain_values",
    "share_attention",
    "share_group_norm",
    "scale",
    "shift",
    "only_self_level",
)


class StyleError(ValueError):
    """A style file that cannot be read, or a style that does not fit a model."""


@dataclass(frozen=True)
class Style:
    """The reference of a set: its latents at every step, its text embedding, and how they came about.

    Attributes:
        prompt: The prompt of the reference.
        negative_prompt: The prompt to guide away from, for the targets too.
        seed: The seed of its noise.
        num_inference_steps: The number of steps.
        condition_scale: The strength of the classifier-free guidance, for the targets too.
        size: The height and width of the images, in pixels.
        options: The options of the [`StyleAlignedAdapter`][style_aligned.adapter.StyleAlignedAdapter].
        solver: The name and parameters of the solver.
        model: The class, precision and fingerprint of the model, and whether it has classifier-free guidance.
        latents: The latents before each step, and after the last one.
        text: The text embedding of the reference.
        preview: The reference in small.
    """

    prompt: str
    negative_prompt: str
    seed: int
    num_inference_steps: int
    condition_scale: float
    size: tuple[int, int]
    options: dict[str, Any]
    solver: dict[str, Any]
    model: dict[str, Any]
    latents: Float[Tensor, "steps 4 height width"] = field(repr=False)
    text: TextEmbedding = field(repr=False)
    preview: Image.Image = field(repr=False)

    @classmethod
    @torch.no_grad()
    def from_prompt(
        cls,
        model: Model,
        prompt: str,
        *,
        negative_prompt: str = "",
        seed: int = 0,
        noise: Float[Tensor, "1 4 height width"] | None = None,
        num_inference_steps: int = 30,
        condition_scale: float = 5.0,
        size: tuple[int, int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> "Style":
        """Make a style from a prompt, by generating its reference.

        Args:
            model: The model, with the solver to use.
            prompt: The prompt of the reference.
            negative_prompt: The prompt to guide away from.
            seed: The seed of the noise.
            noise: The noise itself, in place of what the seed gives.
            num_inference_steps: The number of steps.
            condition_scale: The strength of the classifier-free guidance.
            size: The height and width in pixels. None means what the model was trained for.
            options: Options of the [`StyleAlignedAdapter`][style_aligned.adapter.StyleAlignedAdapter].

        Raises:
            ValueError: If the prompt is empty, a number out of its range, or an option not one that a style can have.
        """
        size = default_size(model) if size is None else size
        options = dict(options or {})
        _check_settings(model, prompt, num_inference_steps, condition_scale, size, options)
        noise = sample_noise(model, seed, size) if noise is None else noise
        if noise.shape != (1, 4, size[0] // 8, size[1] // 8):
            raise ValueError(f"expected noise of shape {(1, 4, size[0] // 8, size[1] // 8)}, got {tuple(noise.shape)}")

        solver = model.solver.rebuild(num_inference_steps=num_inference_steps, first_inference_step=0)
        text = embed(model, prompt, negative_prompt)
        trajectory = Trajectory(model, solver, seed=seed, noise=noise.to(device=model.device, dtype=model.dtype))
        latents = [trajectory.latents]
        for step in solver.inference_steps:
            predicted_noise = predict_noise(
                model, solver, trajectory.latents, step, text=text, condition_scale=condition_scale
            )
            trajectory.advance(predicted_noise, step)
            latents.append(trajectory.latents)

        preview = model.lda.latents_to_image(trajectory.latents)
        preview.thumbnail((PREVIEW, PREVIEW))
        return cls(
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            num_inference_steps=num_inference_steps,
            condition_scale=condition_scale,
            size=size,
            options=options,
            solver=describe_solver(solver),
            model=describe_model(model),
            latents=torch.cat(latents),
            text=text,
            preview=preview,
        )

    def image(self, model: Model) -> Image.Image:
        """Decode the reference.

        Args:
            model: The model.
        """
        with torch.no_grad():
            return model.lda.latents_to_image(self.latents[-1:].to(device=model.device, dtype=model.dtype))

    def check(self, model: Model, force: bool = False) -> None:
        """Check that the style fits a model.

        Args:
            model: The model, with its solver.
            force: Whether to let other weights of the same kind of model, or another precision, pass.

        Raises:
            StyleError: If it does not, with the reason.
        """
        own, given = self.model, describe_model(model)
        for name in ("class", "classifier_free_guidance") if force else own:
            if given[name] != own[name]:
                raise StyleError(f"expected a model with {name}={own[name]}, as the style's, got {given[name]}")
        given_solver = describe_solver(model.solver)
        if given_solver != self.solver:
            differing = [name for name in self.solver if given_solver.get(name) != self.solver[name]] or ["parameters"]
            name = differing[0]
            raise StyleError(
                f"expected a solver with {name}={self.solver.get(name)}, as the style's, got {given_solver.get(name)}"
            )

    def save(self, path: str | Path) -> None:
        """Write the style to a safetensors file: the same bytes for the same style.

        Args:
            path: The path of the file. What is there is replaced once the new file is complete.
        """
        path = Path(path)
        preview = io.BytesIO()
        self.preview.save(preview, format="PNG")
        tensors = {
            "latents": self.latents,
            **self.text.tensors,
            "preview": torch.frombuffer(bytearray(preview.getvalue()), dtype=torch.uint8),
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
        settings = {
            "format": FORMAT,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            "num_inference_steps": self.num_inference_steps,
            "condition_scale": self.condition_scale,
            "size": list(self.size),
            "options": self.options,
            "solver": self.solver,
            "model": self.model,
        }
        settings["sha256"] = _digest(settings, tensors)
        part = path.with_name(path.name + ".part")
        try:
            # a single entry: the order of several is not defined
            save_file(tensors, part, metadata={"style_aligned": json.dumps(settings, sort_keys=True)})
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> "Style":
        """Read a style from a file that [`save`][style_aligned.style.Style.save] has written.

        Everything is checked, shapes before anything is allocated.

        Args:
            path: The path of the file.

        Raises:
            StyleError: If the file is not a style, or was altered or cut off.
            FileNotFoundError: If there is no such file.
        """
        path = Path(path)
        with path.open("rb") as file:
            start = file.read(8)
        if len(start) < 8 or int.from_bytes(start, "little") > MAX_HEADER:
            raise StyleError(f"expected {path} to be a style file, got one without a safetensors header")
        try:
            with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
                return cls._read(file, path)
        except SafetensorError as error:
            raise StyleError(
                f"expected {path} to be a complete safetensors file, got one that is not: {error}"
            ) from None

    @classmethod
    def _read(cls, file: Any, path: Path) -> "Style":
        metadata: dict[str, str] = file.metadata() or {}
        try:
            settings: dict[str, Any] = json.loads(metadata["style_aligned"])
            if settings["format"] != FORMAT:
                raise StyleError(f"expected {path} to have format {FORMAT}, got {settings['format']}")
            height, width = (int(length) for length in settings["size"])
            steps = int(settings["num_inference_steps"])
            shapes: dict[str, list[int]] = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            digest = settings.pop("sha256")
            expected = {"latents": [steps + 1, 4, height // 8, width // 8]}
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, StyleError):
                raise
            raise StyleError(f"expected {path} to be a style file, got one without a style's settings") from None
        if not {"latents", "clip_text_embedding", "preview"} <= set(shapes):
            raise StyleError(f"expected {path} to hold latents, text embedding and preview, got {sorted(shapes)}")
        if shapes["latents"] != expected["latents"]:
            raise StyleError(f"expected latents of shape {expected['latents']} in {path}, got {shapes['latents']}")
        for key, shape in shapes.items():
            if torch.Size(shape).numel() > MAX_ELEMENTS:
                raise StyleError(f"expected at most {MAX_ELEMENTS} elements in {key} of {path}, got shape {shape}")

        tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in shapes}
        if _digest(settings, tensors) != digest:
            raise StyleError(f"expected {path} as it was written, got one that was altered: its checksum differs")
        preview = Image.open(io.BytesIO(tensors.pop("preview").numpy().tobytes()))
        preview.load()
        settings |= {"size": (height, width)}
        del settings["format"]
        return cls(
            **settings,
            latents=tensors["latents"],
            text=TextEmbedding(tensors["clip_text_embedding"], tensors.get("pooled_text_embedding")),
            preview=preview,
        )


def default_size(model: Model) -> tuple[int, int]:
    """Give the height and width in pixels that a model was trained for."""
    if isinstance(model, StableDiffusion_XL):
        height, width = (int(length) for length in model.default_time_ids[0, :2])
        return height, width
    return 512, 512


def describe_solver(solver: Solver) -> dict[str, Any]:
    """Give the name of a solver and what it was set up with, its number of steps aside."""
    parameters = {name: getattr(value, "value", value) for name, value in asdict(solver.params).items()}
    return {"name": type(solver).__name__, **parameters}


def describe_model(model: Model) -> dict[str, Any]:
    """Give the class and precision of a model, and a fingerprint of the weights of its U-Net."""
    digest = hashlib.sha256()
    samples: list[Tensor] = []
    for parameter in model.unet.parameters():
        digest.update(str(tuple(parameter.shape)).encode())
        flat = parameter.detach().flatten()
        samples.append(flat[:: max(1, len(flat) // 4)][:4])
    digest.update(torch.cat(samples).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return {
        "class": type(model).__name__,
        "classifier_free_guidance": model.classifier_free_guidance,
        "precision": str(model.dtype).removeprefix("torch."),
        "fingerprint": digest.hexdigest()[:16],
    }


def _digest(settings: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_settings(
    model: Model,
    prompt: str,
    num_inference_steps: int,
    condition_scale: float,
    size: tuple[int, int],
    options: dict[str, Any],
) -> None:
    if model.has_self_attention_guidance():
        raise ValueError("expected a model without self-attention guidance, got one with it: disable it first")
    if not prompt.strip():
        raise ValueError("expected a prompt with at least one word, got an empty one")
    if not 1 <= num_inference_steps <= 1000:
        raise ValueError(f"expected num_inference_steps between 1 and 1000, got {num_inference_steps}")
    if not -1e4 < condition_scale < 1e4:
        raise ValueError(f"expected condition_scale to be a finite number, got {condition_scale}")
    if any(length < 64 or length % 8 != 0 for length in size):
        raise ValueError(f"expected a size of multiples of 8, at least 64, got {size[0]}x{size[1]}")
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise ValueError(f"expected options among {', '.join(OPTIONS)}, got {', '.join(unknown)}")
    StyleAlignedAdapter(model.unet, **options)  # checks them
