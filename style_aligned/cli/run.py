"""What the commands that draw do, once their options are checked."""

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from style_aligned.cli import inputs, library, workers
from style_aligned.cli.console import STORAGE_IS_FULL, Interrupted, warn
from style_aligned.cli.options import (
    DrawOptions,
    ModelOptions,
    PromptOptions,
    ReferenceOptions,
    ReportOptions,
    resolve_model,
    set_model_name,
)
from style_aligned.cli.progress import Progress
from style_aligned.files import numbered
from style_aligned.models.family import default_size
from style_aligned.models.model import Model
from style_aligned.sets import drawing
from style_aligned.sets.backend import Backend
from style_aligned.sets.create import check_same, new_set
from style_aligned.sets.explore import explore as explore_in
from style_aligned.sets.image_set import ImageSet, is_set, open_set, read_image_set, sole_use
from style_aligned.sets.names import find_images
from style_aligned.sets.needs import check_needs
from style_aligned.sets.prompts import Prompt, collect_prompts
from style_aligned.sets.records import SetError, SetImage
from style_aligned.sets.sheet import check_sheet, sheet_path, write_sheet
from style_aligned.sets.sources import Source, find_source, find_style
from style_aligned.sets.work import Artist, Done, Report
from style_aligned.styles.style import Style

SHEET = "sheet.png"


@dataclass
class _Job:
    """One set of a run of `generate`."""

    source: Source
    folder: Path
    style: Style | None = None
    prompts: list[Prompt] = field(default_factory=list[Prompt])


def generate(
    output: Path,
    *,
    texts: Sequence[str],
    references: Sequence[str],
    styles: Sequence[str],
    prompts: Sequence[str],
    prompt_options: PromptOptions,
    reference_options: ReferenceOptions,
    options: Mapping[str, Any],
    draw: DrawOptions,
    model: ModelOptions,
    report: ReportOptions,
) -> None:
    """Draw prompts in one or more styles, each of which has a set."""
    sources, drawn = _find_sources(texts, references, styles)
    drawn = [*drawn, *prompts]
    if not drawn and not prompt_options.prompts:
        raise ValueError(
            "expected at least one prompt to draw in that style, got none (style-aligned style makes a style)"
        )
    if all(source.kind != "prompt" for source in sources):
        reference_options.reject("beside a style that is there: it has its own")
    jobs = [_Job(source, _folder(output, sources, index)) for index, source in enumerate(sources)]
    for job in jobs:
        prefix, suffix = _affixes(job, prompt_options)
        job.prompts = collect_prompts(drawn, prompt_options.prompts or (), prefix=prefix, suffix=suffix)
        if job.source.path is not None:
            job.style = Style.load(job.source.path)
    settings = {**reference_options.settings(), **({"options": dict(options)} if options else {})}
    _check_folders(output, jobs)
    name = resolve_model(model.model, *(known for job in jobs for known in _known_models(job)))
    sets: list[ImageSet] = []
    new, there = 0, 0
    with workers.load(name, model, draw) as (loaded, backend), Progress.show() as progress:
        library.warn_about_prompts(loaded, _all_texts(jobs, reference_options))
        for job in jobs:
            done, image_set, count = _generate(job, loaded, backend, name, settings, prompt_options, draw, progress)
            sets.append(image_set)
            new, there = new + len(done.images), there + count
    sheet = output / SHEET
    if len(sets) > 1:
        write_sheet(sets, sheet)
    _report_drawn(output, sets, sheet, new, there, report)


def add(
    folder: Path,
    texts: Sequence[str],
    seed: int | None,
    prompt_options: PromptOptions,
    options: Mapping[str, Any],
    draw: DrawOptions,
    model: ModelOptions,
    report: ReportOptions,
) -> None:
    """Add images to a set, and draw what it is missing."""
    state = read_image_set(folder).state
    given = {"prefix": prompt_options.prefix, "suffix": prompt_options.suffix}
    affixes = {name: getattr(state, name) if value is None else value for name, value in given.items()}
    prompts = collect_prompts(texts, prompt_options.prompts or (), **affixes)
    with (
        _busy_set(folder) as image_set,
        workers.load(name := _name_of(image_set, model), model, draw) as (loaded, backend),
        Progress.show() as progress,
    ):
        library.warn_about_prompts(loaded, [prompt.text for prompt in prompts])
        artist = _artist(image_set, loaded, backend, draw, progress)
        progress.describe("new images")
        _check_needs(artist, loaded, image_set, len(prompts), draw)
        plan = artist.plan(prompts, seed=seed, options=options)
        _remember(image_set, name, prompt_options)
        done = _draw_missing(artist, image_set)
    _report_drawn(folder, [image_set], sheet_path(image_set), len(done.images), len(plan.there), report)


def reroll(
    folder: Path,
    names: Sequence[str],
    seed: int | None,
    count: int,
    options: Mapping[str, Any],
    draw: DrawOptions,
    model: ModelOptions,
    report: ReportOptions,
) -> None:
    """Draw images of a set again."""
    find_images(read_image_set(folder).state.current, names)
    with (
        _busy_set(folder) as image_set,
        workers.load(_name_of(image_set, model), model, draw) as (loaded, backend),
        Progress.show() as progress,
    ):
        images = find_images(image_set.state.current, names)
        artist = _artist(image_set, loaded, backend, draw, progress)
        changed: list[SetImage] = []
        for image in images:
            progress.describe(image.name)
            changed.append(artist.reroll(image, seed=seed, count=count, options=options or None))
    kept = f", and {count - 1} more in {folder / 'replaced'}" if count > 1 else ""
    shown = ", ".join(f"{image.name} has seed {image.drawing.seed}" for image in changed)
    sheet = sheet_path(image_set)
    _report(
        _describe(folder, [image_set], sheet, drawn=changed), f"{shown}{kept}; all together: {sheet}", sheet, report
    )


def explore(
    output: Path,
    prompt: str,
    count: int,
    reference_options: ReferenceOptions,
    options: Mapping[str, Any],
    model: ModelOptions,
    report: ReportOptions,
) -> None:
    """Draw candidates for a reference."""
    settings: dict[str, Any] = {**reference_options.settings(), "options": dict(options)}
    loaded = library.load_model(resolve_model(model.model), model)
    library.warn_about_prompts(loaded, [prompt, *filter(None, [reference_options.negative])])
    size = settings.get("size") or default_size(loaded)
    library.warn_about_size(loaded, size)
    with Progress.show() as progress:
        progress.describe("candidates")
        started = Report(start=progress.start, step=progress.step, image=progress.image, warn=warn)
        paths = explore_in(loaded, output, prompt, settings, count=count, report=started)
    sheet = output / SHEET
    described = {"folder": str(output), "sheet": str(sheet), "styles": [str(path) for path in paths]}
    first = paths[0].with_suffix("")
    shown = f'{sheet}: next, style-aligned generate {first} "…" --output FOLDER, or any other than {first.name}'
    _report(described, shown, sheet, report)


def make_style(
    output: Path, prompt: str, reference_options: ReferenceOptions, options: Mapping[str, Any], model: ModelOptions
) -> None:
    """Make a style file."""
    settings: dict[str, Any] = {**reference_options.settings(), "options": dict(options), "prompt": prompt}
    loaded = library.load_model(resolve_model(model.model), model)
    library.warn_about_prompts(loaded, [prompt, *filter(None, [reference_options.negative])])
    library.warn_about_size(loaded, settings.get("size") or default_size(loaded))
    with Progress.show() as progress:
        started = drawing.start_style(loaded, settings)
        progress.start(1, started.num_inference_steps)
        progress.describe("reference")
        style = started.complete(loaded, on_step=progress.step)
        progress.image()
    output.parent.mkdir(parents=True, exist_ok=True)
    style.save(output)
    typer.echo(f'{output}: next, style-aligned generate {output} "…" --output FOLDER')


def report_change(image_set: ImageSet, images: Sequence[SetImage], what: str, report: ReportOptions) -> None:
    """Draw the contact sheet anew after a change, and report it."""
    sheet = sheet_path(image_set)
    write_sheet([image_set], sheet)
    described = {
        "folder": str(image_set.folder),
        "sheet": str(sheet),
        what: [_describe_image(image) for image in images],
    }
    _report(described, f"{what}: {', '.join(image.name for image in images)}; all together: {sheet}", sheet, report)


def report_files(described: Mapping[str, Any], shown: str, path: Path, report: ReportOptions) -> None:
    """Report files that were written."""
    _report(described, shown, path, report)


def _find_sources(
    texts: Sequence[str], references: Sequence[str], styles: Sequence[str]
) -> tuple[list[Source], list[str]]:
    """Tell the texts for styles from what to draw."""
    if not references and not styles:
        if not texts:
            raise ValueError(
                'expected a style and what to draw, as in generate "a fox, neon sign" "a rocket, neon sign"'
            )
        return [find_source(texts[0])], list(texts[1:])
    for kind, given in (("--reference", references), ("--style", styles)):
        if (twice := next((text for text in given if given.count(text) > 1), None)) is not None:
            raise ValueError(f"expected each {kind} once, got {twice!r} twice")
    sources = [Source("prompt", inputs.check_prompt(text, "--reference")) for text in references]
    return [*sources, *(find_style(text) for text in styles)], list(texts)


def _folder(output: Path, sources: Sequence[Source], index: int) -> Path:
    return output if len(sources) == 1 else output / numbered(index, len(sources), sources[index].name)


def _affixes(job: _Job, given: PromptOptions) -> tuple[str, str]:
    """Return prefix and suffix: those given, else those of the set that is there, else those of the style's set."""
    known: Any = read_image_set(job.folder).state if is_set(job.folder) else job.source
    prefix = known.prefix if given.prefix is None else given.prefix
    return prefix, known.suffix if given.suffix is None else given.suffix


def _known_models(job: _Job) -> Iterable[str | None]:
    if is_set(job.folder):
        yield read_image_set(job.folder).state.model
    yield job.source.model
    if job.style is not None and job.style.model["class"] == "Mini":
        yield "mini"


def _check_folders(output: Path, jobs: Sequence[_Job]) -> None:
    """Check what can be checked without the model: that nobody is at work there, and nothing is in the way."""
    for job in jobs:
        inputs.check_output_folder(job.folder)
        if job.folder.is_dir():
            with sole_use(job.folder):
                pass
        check_sheet(job.folder / SHEET)
    check_sheet(output / SHEET)


def _all_texts(jobs: Sequence[_Job], reference_options: ReferenceOptions) -> list[str]:
    texts = [job.source.text for job in jobs if job.source.path is None]
    texts += [prompt.text for job in jobs for prompt in job.prompts]
    return [*dict.fromkeys(texts), *filter(None, [reference_options.negative])]


def _generate(
    job: _Job,
    model: Model,
    backend: Backend | None,
    name: str,
    settings: Mapping[str, Any],
    prompt_options: PromptOptions,
    draw: DrawOptions,
    progress: Progress,
) -> tuple[Done, ImageSet, int]:
    """Make a set, or go on with the one that is there. Returns what was drawn, and how many prompts it had."""
    prefix, suffix = _affixes(job, prompt_options)
    new = new_set(
        job.source,
        _of_prompt(settings) if job.style is None else {},
        style=job.style,
        model=set_model_name(name),
        prefix=prefix,
        suffix=suffix,
    )
    style = job.style
    if style is not None and "options" in settings:
        style = style.with_(**settings["options"])
    with _busy_set(job.folder, new=new) as image_set:
        given = (
            settings if job.style is None else {name: value for name, value in settings.items() if name == "options"}
        )
        if image_set.state is not new:
            check_same(image_set, job.source, given, style=job.style)
        artist = _artist(
            image_set, model, backend, draw, progress, style, None if style is None else str(job.source.path)
        )
        progress.describe(_shorten(image_set.state.reference.prompt))
        library.warn_about_size(model, artist.style.size)
        _check_needs(artist, model, image_set, len(job.prompts), draw)
        seed = None if job.style is None or "seed" not in settings else settings["seed"] + 1
        plan = artist.plan(job.prompts, seed=seed)
        _remember(image_set, name, prompt_options)
        done = _draw_missing(artist, image_set)
    return done, image_set, len(plan.there)


def _of_prompt(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "prompt"}


@contextmanager
def _busy_set(folder: Path, **arguments: Any) -> Generator[ImageSet, None, None]:
    """Open a set to draw in it. An interruption and a full disk say what is kept."""
    with ExitStack() as stack:
        image_set = stack.enter_context(open_set(folder, **arguments))
        before = _count_drawn(image_set)
        try:
            yield image_set
        except KeyboardInterrupt:
            stack.close()
            raise Interrupted(_kept(image_set, before)) from None
        except OSError as error:
            if error.errno in STORAGE_IS_FULL:
                error.strerror = f"{(error.strerror or '').lower()}; {_kept(image_set, before)}"
            raise


def _count_drawn(image_set: ImageSet) -> int:
    return sum(image.drawing.is_drawn and image_set.path(image).is_file() for image in image_set.state.current)


def _kept(image_set: ImageSet, before: int) -> str:
    """Say what is really there."""
    drawn, total = _count_drawn(image_set), len(image_set.state.current)
    left = f"; style-aligned add {image_set.folder} draws the others" if drawn < total else ""
    images = "1 image is" if total == 1 else f"{total} images are"
    return f"{drawn} of {images} in {image_set.folder}, {drawn - before} of them new{left}"


def _name_of(image_set: ImageSet, model: ModelOptions) -> str:
    """Return the name of the model of a set."""
    made_with = image_set.settings_of(image_set.state.reference.drawing)
    own_class = made_with.get("model", {}).get("class")
    if image_set.state.model is None and model.model is None and own_class != "Mini":
        raise SetError(f"{image_set.folder} does not say which model has made it ({own_class}): add --model")
    return resolve_model(model.model, image_set.state.model, "mini" if own_class == "Mini" else None)


def _artist(
    image_set: ImageSet,
    model: Model,
    backend: Backend | None,
    draw: DrawOptions,
    progress: Progress,
    style: Style | None = None,
    style_name: str | None = None,
) -> Artist:
    report = Report(start=progress.start, step=progress.step, image=progress.image, warn=warn)
    return Artist(image_set, model, workers.how_to_draw(draw), report, style, style_name, backend)


def _check_needs(artist: Artist, model: Model, image_set: ImageSet, count: int, draw: DrawOptions) -> None:
    if draw.has_workers:  # whose memory is not known here
        return
    style = artist.style
    warnings = check_needs(
        model,
        image_set.folder,
        size=style.size,
        batch_size=min(draw.batch_size, max(1, count)),
        images=count * (2 if draw.compare else 1),
        steps=style.num_inference_steps,
        force=draw.force,
    )
    for warning in warnings:
        warn(warning)


def _remember(image_set: ImageSet, model: str, given: PromptOptions) -> None:
    """Have the set know of its model, prefix and suffix."""
    known: dict[str, Any] = {} if image_set.state.model is not None else {"model": set_model_name(model)}
    for name, value in (("prefix", given.prefix), ("suffix", given.suffix)):
        if value is not None and value != getattr(image_set.state, name):
            known[name] = value
    if known:
        image_set.commit_settings(**known)


def _draw_missing(artist: Artist, image_set: ImageSet) -> Done:
    done = artist.draw_missing()
    for images, singular, plural in (
        (done.missing.deleted, "1 image was gone, and was drawn again", "images were gone, and were drawn again"),
        (
            done.missing.damaged,
            "1 image was damaged, and was drawn again",
            "images were damaged, and were drawn again",
        ),
        (
            done.missing.edited,
            "1 image was changed by another program, and is kept",
            "images were changed by another program, and are kept",
        ),
    ):
        if images:
            what = singular if len(images) == 1 else f"{len(images)} {plural}"
            warn(f"{what}: {', '.join(image.name for image in images[:4])}{', …' if len(images) > 4 else ''}")
    return done


def _report_drawn(
    output: Path, sets: Sequence[ImageSet], sheet: Path, new: int, there: int, report: ReportOptions
) -> None:
    already = f" ({there} were there already)" if there else ""
    shown = f"{new} new image{'' if new == 1 else 's'} in {output}{already}; all together: {sheet}"
    _report({**_describe(output, sets, sheet), "new": new, "there": there}, shown, sheet, report)


def _describe(
    output: Path, sets: Sequence[ImageSet], sheet: Path, drawn: Sequence[SetImage] | None = None
) -> dict[str, Any]:
    described: dict[str, Any] = {
        "folder": str(output),
        "sheet": str(sheet),
        "sets": [
            {
                "folder": str(image_set.folder),
                "reference": _describe_image(image_set.state.reference),
                "images": [_describe_image(image) for image in image_set.state.current],
            }
            for image_set in sets
        ],
    }
    if drawn is not None:
        described["drawn"] = [_describe_image(image) for image in drawn]
    return described


def _describe_image(image: SetImage) -> dict[str, Any]:
    number = {} if image.id < 0 else {"id": image.id}
    return {**number, "prompt": image.prompt, "seed": image.drawing.seed, "file": image.drawing.file}


def _report(described: Mapping[str, Any], shown: str, path: Path, report: ReportOptions) -> None:
    typer.echo(json.dumps(described, indent=2, ensure_ascii=False) if report.json else shown)
    if report.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


def _shorten(text: str, length: int = 30) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
