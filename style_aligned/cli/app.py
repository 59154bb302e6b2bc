"""The commands."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from style_aligned.cli import inputs, library
from style_aligned.cli.console import Progress
from style_aligned.cli.evaluate import evaluate
from style_aligned.cli.sets import Settings
from style_aligned.models.family import MINI, SDXL

app = typer.Typer(
    help="Sets of images in the style of one reference, without training.",
    rich_markup_mode=None,  # plain help: fast, and readable in a pipe
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
style_app = typer.Typer(help="Make and inspect style files.", rich_markup_mode=None, no_args_is_help=False)
app.add_typer(style_app, name="style")


class Precision(str, Enum):
    """The types that a model's weights can have."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The model: mini (the embedded one), a diffusers folder, a .safetensors file, a folder in Refiners'"
        " format, or a name on the Hugging Face hub.",
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="Where to compute: cpu, cuda, cuda:1, mps, …")]
Dtype = Annotated[
    Precision, typer.Option(metavar="TYPE", help="The precision of the model: float32, float16 or bfloat16.")
]
BatchSize = Annotated[int, typer.Option(min=1, metavar="COUNT", help="Images that go through the model at a time.")]
Negative = Annotated[str | None, typer.Option(help="What to guide away from.", metavar="TEXT")]
Steps = Annotated[
    int | None, typer.Option(min=1, max=1000, metavar="COUNT", help="Steps of the solver.  [default: 30]")
]
Guidance = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER", help="Strength of the classifier-free guidance.  [default: 5.0, of the embedded model 2.0]"
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="WIDTHxHEIGHT", help="Size of the images in pixels.  [default: what the model was trained for]"
    ),
]
Seed = Annotated[int, typer.Option(min=0, metavar="SEED", help="Seed that everything random follows from.")]
Scale = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER", help="Factor for the reference's keys: more than 1 takes more of it.  [default: 1.0]"
    ),
]
Shift = Annotated[
    float | None,
    typer.Option(metavar="NUMBER", help="Added to the scores of the reference: 0.7 counts it twice.  [default: 0.0]"),
]
ShareGroupNorm = Annotated[
    bool | None,
    typer.Option(
        "--share-group-norm/--no-share-group-norm",
        help="Normalize each image over the reference too: grounds and light follow it more closely."
        "  [default: for the embedded model]",
        show_default=False,
    ),
]


def _show_version(is_asked: bool) -> bool:
    if is_asked:
        try:
            number = version("style-aligned")
        except PackageNotFoundError:
            number = "(run from its sources)"
        typer.echo(f"style-aligned {number}")
        raise typer.Exit
    return is_asked


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Sets of images in the style of one reference, without training."""


@app.command()
def generate(
    output: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Where the images go, numbered with as many digits as their count takes, but at least three.",
        ),
    ],
    reference: Annotated[
        list[str] | None, typer.Option(metavar="PROMPT", help="Prompt of the reference. Repeat it for several styles.")
    ] = None,
    style: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A style file, with steps, guidance, size and negative prompt of its own. Repeat it for several.",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What to draw. Repeat it for more images.")
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="More to draw: a prompt a line, or .jsonl with prompt and seed; - for stdin. Repeat it for more.",
        ),
    ] = None,
    model: Model = "mini",
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="SEED",
            help="Seed of the reference; the images count on from it.  [default: 0, or the style file's]",
        ),
    ] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    size: Size = None,
    negative: Negative = None,
    scale: Scale = None,
    shift: Shift = None,
    share_group_norm: ShareGroupNorm = None,
    compare: Annotated[bool, typer.Option("--compare", help="Make the same images unaligned too.")] = False,
    batch_size: BatchSize = 4,
    device: Device = "cpu",
    dtype: Dtype = Precision.float32,
    bank_device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where to keep what is recorded of the reference: with cpu, SDXL takes 0.8 GB less of a GPU, and"
            " more time.  [default: as --device]",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace images of other settings; use a style file with other weights."),
    ] = False,
) -> None:
    """Draw any number of prompts in the style of a reference.

    The images are PNG files with their settings inside, and a contact sheet shows them all. Interrupted, the same
    command goes on from where it was.
    """
    settings = _settings(model, seed, steps, guidance, size, negative, scale, shift, share_group_norm)
    if not reference and not style:
        raise typer.BadParameter("expected a --reference or a --style, got none")
    if not reference:
        own = {"--steps": steps, "--guidance": guidance, "--size": size, "--negative": negative}
        inputs.reject(own, "beside --style: the style file has its own")
    targets = inputs.collect_prompts(prompt or [], prompts or [])
    inputs.check_device(device)
    if bank_device is not None:
        inputs.check_device(bank_device, "--bank-device")
    inputs.check_output_folder(output)

    from style_aligned.cli import run

    run.generate(
        output,
        references=[inputs.check_prompt(text, "--reference") for text in reference or []],
        style_files=style or [],
        prompts=targets,
        settings=settings,
        load=lambda: library.load_model(model, device=device, dtype=dtype.value),
        model_name=model,
        compare=compare,
        batch_size=batch_size,
        bank_device=bank_device,
        force=force,
    )


@style_app.command("make")
def make_style(
    reference: Annotated[str, typer.Option(metavar="PROMPT", help="Prompt of the reference.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The .safetensors file to write.")],
    model: Model = "mini",
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    size: Size = None,
    negative: Negative = None,
    scale: Scale = None,
    shift: Shift = None,
    share_group_norm: ShareGroupNorm = None,
    device: Device = "cpu",
    dtype: Dtype = Precision.float32,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Make a style file from a prompt, for `style-aligned generate --style`."""
    settings = _settings(model, seed, steps, guidance, size, negative, scale, shift, share_group_norm)
    inputs.check_prompt(reference, "--reference")
    inputs.check_device(device)
    inputs.check_output_file(output)
    if output.exists() and not force:
        raise ValueError(f"{output} exists already: --force replaces it")

    from style_aligned.cli import run

    run.make_style(output, reference, settings, lambda: library.load_model(model, device=device, dtype=dtype.value))


@style_app.command("show")
def show_style(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The style file.")],
    preview: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Write the small picture of the reference that it holds.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --preview if it is there.")] = False,
) -> None:
    """Show what a style file holds."""
    if preview is not None:
        inputs.check_output_file(preview, "--preview")
        if preview.exists() and preview.samefile(file):
            raise ValueError(f"expected --preview to be another file than the style file, got {preview}")
        if preview.exists() and not force:
            raise ValueError(f"{preview} exists already: --force replaces it")

    from style_aligned.cli import run

    run.show_style(file, preview)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(metavar="PNG", help="The picture to write.")] = Path("demo.png"),
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=1, max=1000, metavar="COUNT", help="Steps of the solver.")] = 16,
    model: Model = "mini",
    device: Device = "cpu",
) -> None:
    """Draw several styles, unaligned and aligned, in one picture, in less than a minute on two cores."""
    inputs.check_number("--seed", seed, maximum=inputs.MAX_SEED)
    inputs.check_device(device)
    inputs.check_output_file(output)

    from style_aligned.files import describe_picture, is_replaceable, write_png

    if not is_replaceable(output, "demonstration"):
        raise ValueError(f"expected --output to be new, or of an earlier demo, got {output}: take another name")
    loaded = library.load_model(model, device=device, dtype="float32")

    from style_aligned.demo import ROWS, count_images, draw_demo

    images = count_images(ROWS)
    with Progress.show(images, images * steps) as progress:
        picture = draw_demo(loaded, seed=seed, steps=steps, on_step=progress.step, on_image=progress.image)
    write_png(output, picture, describe_picture("demonstration"))
    typer.echo(
        f"{output}: the same prompts and noise, unaligned and aligned. Next: {_program()} generate"
        ' --reference "a fox, neon sign" --prompt "a rocket, neon sign" --prompt "an umbrella, neon sign"'
        " --seed 5 --compare --output neon"
    )


@app.command()
def concepts() -> None:
    """List what the embedded model draws, and in which styles."""
    from style_aligned.models.mini import known_concepts, known_styles

    for title, names in (("Styles", known_styles()), ("Concepts", known_concepts())):
        typer.echo(f"{title} ({len(names)}):")
        _echo_columns(sorted(names))
    typer.echo('Say it as in "a fox, neon sign".')


@app.command()
def convert(
    source: Annotated[str, typer.Option("--from", metavar="MODEL", help="Anything that --model takes, but for mini.")],
    target: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="The folder to write.")],
    half: Annotated[bool, typer.Option("--half", help="Store the weights in float16.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")] = False,
) -> None:
    """Convert a model to Refiners' format, tensor by tensor."""
    from style_aligned.models.checkpoints import convert_checkpoint

    typer.echo(str(convert_checkpoint(source, target, half=half, dry_run=dry_run)))


app.command("evaluate")(evaluate)


def _settings(
    model: str,
    seed: int | None,
    steps: int | None,
    guidance: float | None,
    size: str | None,
    negative: str | None,
    scale: float | None,
    shift: float | None,
    share_group_norm: bool | None,
) -> Settings:
    """Check the settings of a reference that were given, and put defaults for the others."""
    inputs.check_number("--seed", seed, maximum=inputs.MAX_SEED)
    inputs.check_number("--guidance", guidance, minimum=-1000, maximum=1000)
    inputs.check_number("--scale", scale, minimum=0, maximum=1000)
    inputs.check_number("--shift", shift, minimum=-1000, maximum=1000)
    family = MINI if model == "mini" else SDXL
    given = {"scale": scale, "shift": shift, "share_group_norm": share_group_norm}
    return Settings(
        negative=inputs.check_text(negative or "", "--negative"),
        seed=seed,
        steps=family.num_inference_steps if steps is None else steps,
        guidance=family.condition_scale if guidance is None else guidance,
        size=inputs.parse_size(size),
        options={name: value for name, value in given.items() if value is not None},
        model_options={**family.options},
    )


def _program() -> str:
    """Give what runs this again from the user's folder: `scripts/demo` leaves no active environment behind."""
    path = Path(sys.argv[0]).absolute()
    if path == Path(__file__).with_name("__main__.py"):
        return f"{shlex.quote(sys.executable)} -m style_aligned.cli"
    found = shutil.which("style-aligned")
    if path.stem != "style-aligned" or (found is not None and path.resolve() == Path(found).resolve()):
        return "style-aligned"
    if Path.cwd() in path.parents:
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path) if len(path.parts) > 1 else f"./{path}")


def _echo_columns(names: Sequence[str], width: int = 100) -> None:
    longest = max(map(len, names), default=0) + 2
    columns = max(1, (width - 2) // longest)
    for start in range(0, len(names), columns):
        typer.echo("  " + "".join(name.ljust(longest) for name in names[start : start + columns]).rstrip())
