"""The commands `demo`, `concepts` and `convert`."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from style_aligned.cli import inputs
from style_aligned.cli.options import ModelOptions, resolve_model, takes
from style_aligned.cli.progress import Progress


@takes(model=ModelOptions)
def demo(
    *,
    output: Annotated[Path, typer.Option(metavar="PNG", help="The picture to write.")] = Path("demo.png"),
    seed: Annotated[int, typer.Option(min=0, metavar="SEED", help="Seed that everything random follows from.")] = 0,
    steps: Annotated[int, typer.Option(min=1, max=1000, metavar="COUNT", help="Steps of the solver.")] = 16,
    model: ModelOptions,
) -> None:
    """Draw several styles, unaligned and aligned, in one picture, in less than a minute on two cores.

    Example: style-aligned demo --output demo.png
    """
    inputs.check_number("--seed", seed, minimum=0, maximum=inputs.MAX_SEED)
    inputs.check_output_file(output)

    from style_aligned.files import describe_picture, is_replaceable, write_png

    if not is_replaceable(output, "demonstration"):
        raise ValueError(f"expected --output to be new, or of an earlier demo, got {output}: take another name")

    from style_aligned.cli import library

    loaded = library.load_model(resolve_model(model.model), model)

    from style_aligned.demo import ROWS, count_images, draw_demo

    images = count_images(ROWS)
    with Progress.show(images, images * steps) as progress:
        picture = draw_demo(loaded, seed=seed, steps=steps, on_step=progress.step, on_image=progress.image)
    write_png(output, picture, describe_picture("demonstration"))
    typer.echo(
        f"{output}: the same prompts and noise, unaligned and aligned. Next: {_program()} generate"
        ' "a fox, neon sign" "a rocket, neon sign" "an umbrella, neon sign" --seed 5 --compare --output neon'
    )


def concepts() -> None:
    """List what the embedded model draws, and in which styles.

    Example: style-aligned concepts
    """
    from style_aligned.models.mini import known_concepts, known_styles

    for title, names in (("Styles", known_styles()), ("Concepts", known_concepts())):
        typer.echo(f"{title} ({len(names)}):")
        _echo_columns(sorted(names))
    typer.echo('Say it as in "a fox, neon sign".')


def convert(
    source: Annotated[str, typer.Option("--from", metavar="MODEL", help="Anything that --model takes, but for mini.")],
    target: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="The folder to write.")],
    half: Annotated[bool, typer.Option("--half", help="Store the weights in float16.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")] = False,
) -> None:
    """Convert a model to Refiners' format, tensor by tensor.

    Example: style-aligned convert --from sd_xl_base_1.0.safetensors --to sdxl --half
    """
    from style_aligned.models.checkpoints import convert_checkpoint

    typer.echo(str(convert_checkpoint(source, target, half=half, dry_run=dry_run)))


def _program() -> str:
    """Return what runs this again from the user's folder: `scripts/demo` leaves no active environment behind."""
    path = Path(sys.argv[0]).absolute()
    if Path(__file__).parents[1] in path.parents:
        return f"{shlex.quote(sys.executable)} -m style_aligned"
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
