"""What the commands do once their options are checked."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from style_aligned.cli import drawing, existing, library, sets
from style_aligned.cli.console import Progress, warn
from style_aligned.cli.inputs import Prompt
from style_aligned.cli.locking import sole_use
from style_aligned.cli.overview import draw_overview
from style_aligned.files import describe_picture, write_png
from style_aligned.models.model import Model, describe_model, fingerprint
from style_aligned.styles.style import Style


def generate(
    output: Path,
    *,
    references: Sequence[str],
    style_files: Sequence[Path],
    prompts: Sequence[Prompt],
    settings: sets.Settings,
    load: Callable[[], Model],
    model_name: str,
    compare: bool,
    batch_size: int,
    bank_device: str | None,
    force: bool,
) -> None:
    """Make the images of one or more styles, and their contact sheet."""
    sources = [sets.Source(prompt) for prompt in references]
    for path in style_files:
        style = Style.load(path)
        sources.append(sets.Source(style.prompt, style, path.stem))
    planned = sets.plan(output, sources, prompts, seed=settings.seed, compare=compare)
    existing.check_places(output, planned)
    if not force:
        existing.check_existing(output, planned, settings)

    if bank_device is not None:
        library.check_available(bank_device)
    model = load()
    described = {**describe_model(model), "decoder": fingerprint(model.lda)}
    drawn = [*references, *(prompt.text for prompt in prompts)]
    library.warn_about_prompts(model, [text for text in [*drawn, settings.negative] if text])
    size = settings.size or library.trained_size(model)
    for size in dict.fromkeys(source.style.size if source.style is not None else size for source in sources):
        library.warn_about_size(model, size)

    # all styles before any image: what can be told without drawing is told at once
    styles = [drawing.obtain_style(model, image_set, settings, force=force) for image_set in planned]
    subtitle = _subtitle(model_name, styles)
    with sole_use(output):
        new, total = _draw(
            model,
            planned,
            styles,
            described,
            steps=settings.steps,
            batch_size=batch_size,
            bank_device=bank_device,
            force=force,
        )
        sheet = output / "sheet.png"
        write_png(sheet, draw_overview(planned, subtitle), describe_picture(existing.SHEET))
    if left_over := existing.find_left_over(output, planned):
        are = "1 image of an earlier run is" if len(left_over) == 1 else f"{len(left_over)} images of earlier runs are"
        warn(f"{are} still there, such as {left_over[0]}: not on the sheet")
    already = f" ({total - new} were there already)" if new < total else ""
    typer.echo(f"{new} new image{'' if new == 1 else 's'} in {output}{already}; all together: {sheet}")


def _draw(
    model: Model,
    planned: Sequence[sets.ImageSet],
    styles: list[Style],
    described: Mapping[str, Any],
    *,
    steps: int,
    batch_size: int,
    bank_device: str | None,
    force: bool,
) -> tuple[int, int]:
    """Make the images that are not there yet. Gives their number, and that of all images but the references.

    The list of styles is used up: what a reference holds can be freed once its images are there.
    """
    pending: list[set[Path]] = []
    for index, (image_set, style) in enumerate(zip(planned, styles, strict=True)):
        if not style.is_complete:
            if not existing.has_images(image_set):
                pending.append(set(image_set.paths))
                continue
            with Progress.show(1, steps) as progress:  # only its trajectory tells whether they are of this run
                progress.describe("reference")
                style = drawing.finish_style(model, style, progress)
            pending.append(existing.find_pending(image_set, style, described, force=force))
            drawing.save_style(style, image_set)  # not beside images that were refused
            styles[index] = style
        else:
            pending.append(existing.find_pending(image_set, style, described, force=force))
    counts = [
        drawing.count_work(image_set, paths, batch_size=batch_size) + (not style.is_complete)
        for image_set, style, paths in zip(planned, styles, pending, strict=True)
    ]
    all_steps = sum(count * style.num_inference_steps for count, style in zip(counts, styles, strict=True))
    with Progress.show(sum(counts), all_steps) as progress:
        for image_set, paths in zip(planned, pending, strict=True):
            drawing.make_images(
                model,
                styles.pop(0),
                image_set,
                paths,
                described,
                batch_size=batch_size,
                bank_device=bank_device,
                force=force,
                progress=progress,
            )
    total = sum(len(image_set.aligned) + len(image_set.unaligned) for image_set in planned)
    new = sum(len(paths - {image_set.reference}) for image_set, paths in zip(planned, pending, strict=True))
    return new, total


def make_style(output: Path, reference: str, settings: sets.Settings, load: Callable[[], Model]) -> None:
    """Make a style file."""
    model = load()
    library.warn_about_prompts(model, [text for text in (reference, settings.negative) if text])
    library.warn_about_size(model, settings.size or library.trained_size(model))
    with Progress.show(1, settings.steps) as progress:
        progress.describe("reference")
        style = drawing.finish_style(model, drawing.start_reference(model, reference, settings), progress)
    output.parent.mkdir(parents=True, exist_ok=True)
    style.save(output)
    typer.echo(f'{output}: next, style-aligned generate --style {output} --prompt "…" --output FOLDER')


def show_style(file: Path, preview: Path | None) -> None:
    """Write what a style file holds to standard output."""
    style = Style.load(file)
    for name, value in style.describe().items():
        text = str(value)
        if isinstance(value, dict) or not text.isprintable():  # a text can hold lines that look like ours
            text = json.dumps(value)
        typer.echo(f"{name.replace('_', ' ') + ':':<17} {text}".rstrip())
    typer.echo(f"{'fingerprint:':<17} {style.digest}")
    if preview is not None:
        write_png(preview, style.preview)
        typer.echo(f"{'preview:':<17} {preview}")


def _subtitle(model_name: str, styles: Sequence[Style]) -> str:
    """Name the model, and the settings that all styles have in common."""
    name = model_name if model_name == "mini" else Path(model_name).name
    settings = [
        (
            f"{style.num_inference_steps} step{'' if style.num_inference_steps == 1 else 's'}",
            f"guidance {style.condition_scale:g}",
            f"seed {style.seed}",
        )
        for style in styles
    ]
    common = [values[0] for values in zip(*settings, strict=True) if len(set(values)) == 1]
    return " · ".join((name, *common))
