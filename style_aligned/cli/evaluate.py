"""The command `evaluate`: of images in folders, or of style alignment on the embedded model."""

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from style_aligned.cli import inputs, library
from style_aligned.cli.options import ModelOptions, takes
from style_aligned.cli.progress import Progress

if TYPE_CHECKING:
    from style_aligned.evaluation.statistics import Interval
    from style_aligned.models.model import Model
else:
    Interval = Model = Any  # annotations are evaluated, and these take seconds to import

MAX_FIGURES = 1 << 28  # bytes
FIGURES = ({"rows", "sets", "set_size"}, {"groups", "sets", "models"})  # some of what a file of an evaluation has
PLOT = "evaluation"


@takes()
def evaluate(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER", help="Folders of images. Every folder in them that has images is a set."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="What to measure of folders: clip (images against their prompts), dino (how alike the images of a set"
            " are), csd (how alike in style), palette (in colour).  [default: clip,dino,csd,palette]",
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Another CLIP: a folder of transformers, or a name on the hub."),
    ] = None,
    dino: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Another vision transformer in the place of DINO ViT-B/8.")
    ] = None,
    csd: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The weights of CSD: a .safetensors file, a folder, a name.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the measures of folders into a file.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="JSON", help="Write the figures to a file too.")] = None,
    sets: Annotated[
        int | None, typer.Option(min=2, metavar="COUNT", help="Sets of images in each setting.  [default: 50]")
    ] = None,
    set_size: Annotated[
        int | None,
        typer.Option(min=2, metavar="COUNT", help="Images in a set, the reference included.  [default: 5]"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="SEED", help="Seed that everything random follows from.  [default: 0]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, metavar="COUNT", help="Steps of the solver.  [default: 15]")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Strength of the classifier-free guidance.  [default: 2.0]"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="COUNT",
            help="Images that go through a model at a time.  [default: 16 of folders; 20, but at least a whole set]",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model to evaluate, without a FOLDER.  [default: mini]")
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="Where to compute: cpu, cuda, cuda:1, mps, …")] = "cpu",
) -> None:
    """Measure how consistent sets of images are, and how well they show their prompts.

    With a FOLDER: by CLIP, DINO, CSD and palettes, each with its 95% interval. Prompts are read from the images of this
    program, or from a prompts.txt beside others, with a line for each.

    Without: on the embedded model. It draws aligned and unaligned sets, and a classifier that was trained on real
    drawings tells their style and their concept, and how often that is the reference's concept (leakage).

    Example: style-aligned evaluate icons --metrics palette
    """
    inputs.check_number("--seed", seed, minimum=0, maximum=inputs.MAX_SEED)
    inputs.check_number("--guidance", guidance, minimum=-1000, maximum=1000)
    inputs.check_device(device)
    if output is not None:
        inputs.check_output_file(output)
        _check_figures(output)
    sampling = {"sets": sets, "set_size": set_size, "seed": seed, "steps": steps, "guidance": guidance}
    given = {name: value for name, value in {**sampling, "batch_size": batch_size}.items() if value is not None}
    models = {"clip": clip, "dino": dino, "csd": csd}
    if not folders:
        names = {f"--{name}": value for name, value in {"metrics": metrics, "plot": plot, **models}.items()}
        inputs.reject(names, "without a FOLDER: they measure images that are there")
        evaluate_model(lambda: library.load_model(model or "mini", ModelOptions(device=device)), output, **given)
        return
    given.pop("batch_size", None)
    drawn = {f"--{name.replace('_', '-')}": value for name, value in given.items()}
    inputs.reject({**drawn, "--model": model}, "beside a FOLDER: its images are there")
    if plot is not None:
        inputs.check_output_file(plot, "--plot")
        _check_plot(plot)
    measure_folders(
        folders,
        metrics=None if metrics is None else [name.strip() for name in metrics.split(",")],
        models={name: value for name, value in models.items() if value is not None},
        device=device,
        batch_size=batch_size,
        output=output,
        plot=plot,
    )


def measure_folders(
    folders: Sequence[Path],
    *,
    metrics: Sequence[str] | None,
    models: dict[str, str],
    device: str,
    batch_size: int | None,
    output: Path | None,
    plot: Path | None,
) -> None:
    """Measure the images of folders, and write the results as a table."""
    from style_aligned.evaluation.metrics import METRICS, evaluate_folders
    from style_aligned.files import describe_picture, write_png
    from style_aligned.models.devices import find_device

    find_device(device)
    with _progress() as on_progress:
        evaluation = evaluate_folders(
            folders,
            metrics=tuple(METRICS) if metrics is None else metrics,
            models=models,
            device=device,
            batch_size=16 if batch_size is None else batch_size,
            on_image=on_progress,
        )
    names = list(evaluation.groups[0].values)
    rows = [*(evaluation.sets if len(evaluation.sets) > 1 else ()), *evaluation.groups]
    try:
        _echo_table(
            ("set", "images", *(METRICS[name].title for name in names)),
            [
                (
                    row.name if row in evaluation.sets or row.sets == 1 else f"{row.name}: {row.sets} sets",
                    str(row.images),
                    *(_show(row.values[name], METRICS[name].form) for name in names),
                )
                for row in rows
            ],
            texts=1,
        )
    finally:  # who reads only the table's first lines has the files all the same
        if output is not None:
            _write_figures(output, evaluation.to_dict())
        if plot is not None:
            write_png(plot, evaluation.to_plot(), describe_picture(PLOT))


def evaluate_model(load: Callable[[], Model], output: Path | None, **options: Any) -> None:
    """Evaluate a model, and write the results as a table."""
    from style_aligned.evaluation.sets import evaluate

    model = load()
    with _progress() as on_progress:
        results = evaluate(model, on_progress=on_progress, **options)
    forms = {
        "style": ".1%", "concept": ".1%", "leakage": ".1%", "leakage_probability": ".1%", "palette_distance": ".1f",
    }  # fmt: skip
    try:
        _echo_table(
            ("setting", "variant", *(name.replace("_", " ") for name in forms)),
            [
                (row.setting, row.variant, *(_show(getattr(row, name), form) for name, form in forms.items()))
                for row in results.rows
            ],
            texts=2,
        )
    finally:
        if output is not None:
            _write_figures(output, results.to_dict())


@contextmanager
def _progress() -> Generator[Callable[[int, int], None], None, None]:
    """Show progress that is told by numbers: what is done, and what there is."""
    last = 0
    with Progress.show(0, 1) as progress:

        def on_progress(done: int, total: int) -> None:
            nonlocal last
            progress.total(total)
            progress.step(done - last)
            last = done

        yield on_progress


def _check_figures(path: Path) -> None:
    """Check that a file is not there, or holds the figures of an earlier evaluation, and may be replaced."""
    if not path.exists():
        return
    try:
        loaded: Any = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_FIGURES else None
    except (ValueError, RecursionError):
        loaded = None
    keys = set(cast(dict[str, Any], loaded)) if isinstance(loaded, dict) else set[str]()
    if not any(figures <= keys for figures in FIGURES):
        raise ValueError(f"expected --output to be new, or of an earlier evaluation, got {path}: take another name")


def _check_plot(path: Path) -> None:
    from style_aligned.files import is_replaceable

    if not is_replaceable(path, PLOT):
        raise ValueError(f"expected --plot to be new, or of an earlier evaluation, got {path}: take another name")


def _write_figures(path: Path, figures: dict[str, Any]) -> None:
    from style_aligned.files import write_bytes

    write_bytes(path, (json.dumps(figures, indent=2, sort_keys=True) + "\n").encode())


def _show(interval: Interval | None, form: str) -> str:
    if interval is None:
        return "-"
    ends = form.replace(".1%", ".0%")
    return f"{interval.value:{form}} ({interval.low:{ends}} to {interval.high:{ends}})"


def _echo_table(names: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> None:
    """Write columns, as wide as they need to be: some of texts, then those of figures."""
    lines = [names, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = [
            cell.ljust(width) if index < texts else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        typer.echo("  ".join(padded))
