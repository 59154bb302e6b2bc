"""Options for what goes beside StyleAligned: LoRAs, textual inversion, image prompts, control models, solvers."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from style_aligned.cli import inputs
from style_aligned.cli.options import OTHER_ADAPTERS, from_anywhere


class PresetName(str, Enum):
    """Kinds of models and LoRAs of few steps, as `style_aligned.models.presets` has them."""

    lcm = "lcm"
    lightning = "lightning"
    turbo = "turbo"
    hyper = "hyper"


class SolverName(str, Enum):
    """Refiners' solvers, as `style_aligned.models.presets` has them."""

    ddim = "ddim"
    dpm = "dpm"
    euler = "euler"
    lcm = "lcm"


@dataclass(frozen=True)
class ExtraOptions:
    """What goes beside StyleAligned. A set remembers it."""

    SECTION: ClassVar[str] = OTHER_ADAPTERS

    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:SCALE]", help="A LoRA, in kohya's, diffusers' or PEFT's names. Repeat it for several."
        ),
    ] = None
    embedding: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:WORD]",
            help="A word of textual inversion, for prompts. Repeat it for several.  [default: the word that the file"
            " says, else its name]",
        ),
    ] = None
    ip_adapter: Annotated[
        str | None, typer.Option(metavar="FILE", help="An IP-Adapter, or IP-Adapter Plus, for --image-prompt.")
    ] = None
    image_prompt: Annotated[
        str | None, typer.Option(metavar="PICTURE", help="A picture as a prompt of the reference and all images.")
    ] = None
    image_prompt_scale: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="How strong the image prompt is.  [default: 1]")
    ] = None
    image_encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The image encoder that the IP-Adapter was trained with: a folder, a file, or a name on the hub, such"
            " as h94/IP-Adapter/models/image_encoder.",
        ),
    ] = None
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:SCALE]",
            help="A ControlNet (Stable Diffusion 1.5), ControlLora (SDXL) or T2I-Adapter, for --control-image. Repeat"
            " it for several. The reference does without.",
        ),
    ] = None
    preset: Annotated[
        PresetName | None,
        typer.Option(
            metavar="NAME",
            help="Solver, steps and guidance for a model or LoRA of few steps: lcm, lightning, turbo or hyper.",
        ),
    ] = None
    solver: Annotated[
        SolverName | None,
        typer.Option(metavar="NAME", help="The solver: ddim, dpm, euler or lcm.  [default: as suits the model]"),
    ] = None

    def check(self) -> None:
        """Check what can be checked without PyTorch."""
        inputs.check_number("--image-prompt-scale", self.image_prompt_scale, minimum=0, maximum=10)
        if self.preset is not None and self.solver is not None:
            raise ValueError("expected no --solver beside --preset, which has one")
        files = {"--ip-adapter": self.ip_adapter, "--image-prompt": self.image_prompt}
        needed = {**files, "--image-encoder": self.image_encoder}
        given = [name for name, value in needed.items() if value is not None]
        if given and (missing := [name for name in needed if name not in given]):
            raise ValueError(f"expected {missing[0]} beside {given[0]}: an image prompt takes {', '.join(needed)}")
        if self.image_prompt_scale is not None and not given:
            raise ValueError("expected no --image-prompt-scale without --image-prompt")
        files |= {f"--lora {text}": parse_scaled(text, "--lora")[0] for text in self.lora or ()}
        files |= {f"--embedding {text}": split_word(text)[0] for text in self.embedding or ()}
        files |= {f"--control {text}": parse_scaled(text, "--control")[0] for text in self.control or ()}
        for name, value in files.items():
            if value is not None and not Path(value).expanduser().exists():
                raise ValueError(f"{name}: expected a file, got {value!r}, which is not there")

    def resolve(self, *known: Mapping[str, Any]) -> dict[str, Any]:
        """Return what goes beside StyleAligned, as a set keeps it: what is given, else the first that is known.

        Args:
            known: What sets say of it, which may be nothing.
        """
        image_prompt: dict[str, Any] = {}
        if self.ip_adapter is not None:
            image_prompt = {
                "ip_adapter": from_anywhere(self.ip_adapter),
                "image_prompt": from_anywhere(self.image_prompt or ""),
                "image_encoder": from_anywhere(self.image_encoder or ""),
                "image_prompt_scale": 1.0 if self.image_prompt_scale is None else self.image_prompt_scale,
            }
        loras = [_from_anywhere(text, "--lora") for text in self.lora or ()]
        embeddings = [[from_anywhere(path), word] for path, word in map(split_word, self.embedding or ())]
        control = [_from_anywhere(text, "--control") for text in self.control or ()]
        given: dict[str, Any] = {
            **({"loras": loras} if loras else {}),
            **({"embeddings": embeddings} if embeddings else {}),
            **image_prompt,
            **({"control": control} if control else {}),
            **({"preset": self.preset.value} if self.preset else {}),
            **({"solver": self.solver.value} if self.solver else {}),
        }
        return next((dict(settings) for settings in (given, *known) if settings), given)


def parse_scaled(text: str, option: str) -> tuple[str, float]:
    """Read a file and its scale, such as `pixel.safetensors:0.8`.

    Args:
        text: The text.
        option: The option that it is given by.

    Raises:
        ValueError: If the scale is no number.
    """
    path, colon, scale = text.rpartition(":")
    if not colon or "/" in scale or "\\" in scale:
        return text, 1.0
    try:
        number = float(scale)
    except ValueError:
        raise ValueError(f"{option} {text}: expected a number as the scale behind the colon, got {scale!r}") from None
    inputs.check_number(f"the scale of {option}", number, minimum=-100, maximum=100)
    return path, number


def split_word(text: str) -> tuple[str, str | None]:
    """Read a file and its word, such as `my-cat.safetensors:cat`. None means the word of the file."""
    path, colon, word = text.rpartition(":")
    return (text, None) if not colon or "/" in word or "\\" in word else (path, word)


def _from_anywhere(text: str, option: str) -> list[Any]:
    path, scale = parse_scaled(text, option)
    return [from_anywhere(path), scale]
