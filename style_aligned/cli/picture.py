"""The options of a style from a picture, and how the command line makes one."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from style_aligned.cli import inputs
from style_aligned.options import INVERSION, PRESETS

if TYPE_CHECKING:
    from style_aligned.models.model import Model
    from style_aligned.styles.style import Style
else:
    Model = Style = Any  # annotations are evaluated, and they take seconds to import


class Method(str, Enum):
    """How a picture is brought to every step."""

    noise = "noise"
    ddim = "ddim"


class Fit(str, Enum):
    """How a picture is brought to the size of the reference."""

    crop = "crop"
    pad = "pad"
    fit = "fit"
    stretch = "stretch"


class Like(str, Enum):
    """Whose settings to take: the presets of `style_aligned.options`."""

    transfer = "google-transfer"
    famous = "google-famous"


def _number(name: str) -> Any:
    option = INVERSION[name]
    return typer.Option(option.cli_name, metavar="NUMBER", help=f"{option.help}  [default: {option.default_text}]")


@dataclass(frozen=True)
class PictureOptions:
    """How a picture becomes a style."""

    SECTION: ClassVar[str] = "A picture as the reference"

    caption: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help='What a picture shows and its style, as in "a castle, watercolor".  [default: a captioner writes it]',
        ),
    ] = None
    captioner: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What writes captions: a model's folder or hub name.  [default: the embedded model's own, else BLIP]",
        ),
    ] = None
    caption_only: Annotated[
        bool, typer.Option("--caption-only", help="Print the caption of the picture, and draw nothing.")
    ] = False
    method: Annotated[
        Method | None,
        typer.Option(
            metavar="NAME",
            help="How a picture becomes a reference: noise (at once) or ddim (Google's inversion).  [default: noise]",
        ),
    ] = None
    fit: Annotated[
        Fit | None,
        typer.Option(
            metavar="NAME",
            help="How a picture is brought to the size: crop, pad, fit (a size of its shape) or stretch."
            "  [default: crop]",
        ),
    ] = None
    like: Annotated[
        Like | None,
        typer.Option(metavar="NAME", help=f"Settings of Google's notebooks for pictures: {' or '.join(PRESETS)}."),
    ] = None
    inversion_scale: Annotated[float | None, _number("inversion_scale")] = None
    offset: Annotated[int | None, _number("offset")] = None
    iterations: Annotated[int | None, _number("iterations")] = None
    fresh_noise: Annotated[bool, typer.Option("--fresh-noise", help="With noise, take other noise for each step.")] = (
        False
    )

    def check(self) -> None:
        """Check what can be checked without PyTorch."""
        if self.caption is not None:
            inputs.check_prompt(self.caption, "--caption")
        for name, value in self.settings().items():
            if name in INVERSION:
                INVERSION[name].check(value, INVERSION[name].cli_name)
        of_ddim = {"--inversion-scale": self.inversion_scale, "--offset": self.offset, "--iterations": self.iterations}
        if self.method != Method.ddim:
            inputs.reject(of_ddim, "without --method ddim")
        elif self.fresh_noise:
            inputs.reject({"--fresh-noise": True}, "beside --method ddim")

    def settings(self) -> dict[str, Any]:
        """Return what was given, as arguments of `Style.from_image`."""
        given: dict[str, Any] = {
            "prompt": self.caption,
            "captioner": self.captioner,
            "method": self.method and self.method.value,
            "fit": self.fit and self.fit.value,
            "like": self.like and self.like.value,
            "inversion_scale": self.inversion_scale,
            "offset": self.offset,
            "iterations": self.iterations,
            "fresh_noise": self.fresh_noise or None,
        }
        return {name: value for name, value in given.items() if value is not None}

    def reject(self) -> None:
        """Refuse what only a style from a picture can have."""
        given = {f"--{name.replace('_', '-')}": value for name, value in self.settings().items() if name != "prompt"}
        inputs.reject({**given, "--caption": self.caption, "--caption-only": self.caption_only or None},
                      "without a picture")  # fmt: skip


def style_from_picture(
    model: Model,
    picture: Path,
    settings: dict[str, Any],
    own: Path | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Style:
    """Make the style of a picture, or take the one that was made of it before.

    Args:
        model: The model.
        picture: The path of the picture.
        settings: Arguments of `Style.from_image`.
        own: The style file of a set that may be of the same picture and settings.
        on_step: Called after each step of an inversion.
    """
    from style_aligned.files import digest_picture
    from style_aligned.styles.picture import open_picture
    from style_aligned.styles.style import Style

    if own is not None and own.is_file():
        style = Style.load(own)
        if style.picture == digest_picture(open_picture(picture)[0]) and _has(style, settings):
            return style
    return Style.from_image(model, picture, on_step=on_step, **settings)


def _has(style: Style, settings: dict[str, Any]) -> bool:
    known = {"method": style.method, **style.details, **style.settings}
    asked = {name: value for name, value in settings.items() if name not in ("options", "captioner", "like")}
    return all(known.get(name) == value for name, value in asked.items())


def print_caption(model: Model, picture: Path, captioner: str | None) -> None:
    """Print what a captioner writes of a picture: content and style apart, since the style can end all prompts."""
    from style_aligned.styles.captions import caption_picture
    from style_aligned.styles.picture import open_picture

    caption = caption_picture(open_picture(picture)[0], model, captioner)
    typer.echo(f"content: {caption.content}\nstyle:   {caption.style}")
    suffix = f' --suffix ", {caption.style}"' if caption.style else ""
    typer.echo(f'next: style-aligned generate {picture} "…" --caption "{caption.prompt}"{suffix} --output FOLDER')
