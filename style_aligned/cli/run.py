"""What the commands that draw do, once their options are checked."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import typer

from style_aligned.cli import library, workers
from style_aligned.cli.console import STORAGE_IS_FULL, Interrupted, warn
from style_aligned.cli.extras import ExtraOptions
from style_aligned.cli.jobs import (
    Job,
    affixes_of,
    all_texts,
    check_folders,
    find_sources,
    known_extras,
    known_models,
    load_style,
    preset_settings,
    set_folder,
)
from style_aligned.cli.options import (
    DrawOptions,
    InitOptions,
    ModelOptions,
    PromptOptions,
    ReferenceOptions,
    ReportOptions,
    resolve_model,
    set_model_name,
)
from style_aligned.cli.picture import Method, PictureOptions, print_caption, style_from_picture
from style_aligned.cli.progress import Progress
from style_aligned.cli.reports import command, describe_sets, propose_generate, report_drawn, report_result
from style_aligned.models.family import default_size, family_of
from style_aligned.models.model import Model
from style_aligned.sets import drawing
from style_aligned.sets.backend import Backend
from style_aligned.sets.create import check_same, new_set
from style_aligned.sets.explore import explore as explore_in
from style_aligned.sets.image_set import ImageSet, open_set, read_image_set
from style_aligned.sets.inputs import check_control, check_reference_control
from style_aligned.sets.names import find_images
from style_aligned.sets.needs import check_needs
from style_aligned.sets.prompts import collect_prompts
from style_aligned.sets.records import SetError, SetImage
from style_aligned.sets.set_file import SHEET_FILE, STYLE_FILE
from style_aligned.sets.sheet import sheet_path, write_sheet
from style_aligned.sets.sources import Source
from style_aligned.sets.work import Artist, Done, Report
from style_aligned.styles.picture import open_picture
from style_aligned.styles.style import Style


def generate(
    output: Path,
    *,
    texts: Sequence[str],
    references: Sequence[str],
    styles: Sequence[str],
    blend: bool,
    prompts: Sequence[str],
    prompt_options: PromptOptions,
    reference_options: ReferenceOptions,
    picture_options: PictureOptions,
    extra_options: ExtraOptions,
    init: InitOptions,
    options: Mapping[str, Any],
    draw: DrawOptions,
    model: ModelOptions,
    report: ReportOptions,
) -> None:
    """Draw prompts in one or more styles, each of which has a set."""
    sources, drawn = find_sources(texts, references, styles, blend=blend)
    drawn = [*drawn, *prompts]
    pictures = [source.path for source in sources if source.kind == "picture"]
    if not pictures:
        picture_options.reject()
    elif picture_options.caption_only:
        caption(pictures, picture_options, model)
        return
    if not drawn and not prompt_options.prompts:
        raise ValueError(
            "expected at least one prompt to draw in that style, got none (style-aligned style makes a style)"
        )
    if reference_options.reference_mask == "alpha" and len(pictures) < len(sources):
        raise ValueError("expected a picture as the reference beside --reference-mask alpha, got another one")
    if pictures and reference_options.reference_control:
        raise ValueError("expected no --reference-control beside a picture as the reference, which is not drawn")
    if all(source.kind in ("style", "blend") for source in sources):
        reference_options.reject("beside a style that is there: it has its own")
    given = {**reference_options.settings(), **({"options": dict(options)} if options else {})}
    jobs = [Job(source, set_folder(output, sources, index)) for index, source in enumerate(sources)]
    extras = extra_options.resolve(*(known for job in jobs for known in known_extras(job)))
    settings = {**preset_settings(extras), **given}
    check_reference_control(extras, settings)
    for job in jobs:
        prefix, suffix = affixes_of(job, prompt_options)
        job.prompts = collect_prompts(drawn, prompt_options.prompts or (), prefix=prefix, suffix=suffix)
        check_control(extras, {prompt.text: prompt.inputs or init.given for prompt in job.prompts})
        job.style = load_style(job.source, given)
    for picture in filter(None, pictures):
        open_picture(picture)  # what is wrong with it is said before a model is loaded
    check_folders(output, jobs)
    name = resolve_model(model.model, *(known for job in jobs for known in known_models(job)))
    sets: list[ImageSet] = []
    new, there, twins = 0, 0, 0
    with workers.load(name, model, draw, extras) as (loaded, backend), Progress.show() as progress:
        library.warn_about_prompts(loaded, all_texts(jobs, reference_options))
        for job in jobs:
            if job.source.kind == "picture" and job.source.path is not None:
                own = job.folder / STYLE_FILE
                job.style = style_from_picture(loaded, job.source.path, {**settings, **picture_options.settings()}, own)
            own_settings = settings if job.style is None else given
            done, image_set, count = _generate(
                job, loaded, backend, name, extras, own_settings, prompt_options, init, draw, progress
            )
            sets.append(image_set)
            new, there, twins = new + len(done.images), there + count, twins + len(done.twins)
    sheet = output / SHEET_FILE
    if len(sets) > 1:
        write_sheet(sets, sheet)
    report_drawn(output, sets, sheet, report, new=new, there=there, twins=twins)


def add(
    folder: Path,
    texts: Sequence[str],
    seed: int | None,
    prompt_options: PromptOptions,
    extra_options: ExtraOptions,
    init: InitOptions,
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
    extras = extra_options.resolve(state.extras)
    check_control(extras, {prompt.text: prompt.inputs or init.given for prompt in prompts})
    with (
        _busy_set(folder) as image_set,
        workers.load(name := _name_of(image_set, model), model, draw, extras) as (loaded, backend),
        Progress.show() as progress,
    ):
        library.warn_about_prompts(loaded, [prompt.text for prompt in prompts])
        artist = _artist(image_set, loaded, backend, draw, progress)
        progress.describe("new images")
        _check_needs(artist, loaded, image_set, len(prompts), draw)
        plan = artist.plan(prompts, seed=seed, options=options, inputs=init.given)
        _remember(image_set, name, extras, prompt_options)
        done = _draw_missing(artist, image_set)
    counts = {"new": len(done.images), "there": len(plan.there), "twins": len(done.twins)}
    report_drawn(folder, [image_set], sheet_path(image_set), report, **counts)


def reroll(
    folder: Path,
    names: Sequence[str],
    seed: int | None,
    count: int,
    extra_options: ExtraOptions,
    init: InitOptions,
    options: Mapping[str, Any],
    draw: DrawOptions,
    model: ModelOptions,
    report: ReportOptions,
) -> None:
    """Draw images of a set again."""
    state = read_image_set(folder).state
    extras = extra_options.resolve(state.extras)
    found = find_images(state.current, names)
    check_control(extras, {image.prompt: init.given or image.drawing.inputs for image in found})
    with (
        _busy_set(folder) as image_set,
        workers.load(_name_of(image_set, model), model, draw, extras) as (loaded, backend),
        Progress.show() as progress,
    ):
        images = find_images(image_set.state.current, names)
        artist = _artist(image_set, loaded, backend, draw, progress)
        changed: list[SetImage] = []
        for image in images:
            progress.describe(image.name)
            changed.append(
                artist.reroll(image, seed=seed, count=count, options=options or None, inputs=init.given or None)
            )
    kept = f", and {count - 1} more in {folder / 'replaced'}" if count > 1 else ""
    shown = ", ".join(f"{image.name} has seed {image.drawing.seed}" for image in changed)
    sheet = sheet_path(image_set)
    report_result(
        describe_sets(folder, [image_set], sheet, drawn=changed),
        f"{shown}{kept}; all together: {sheet}",
        sheet,
        report,
        undo=_undo_reroll(image_set, images, count),
    )


def _undo_reroll(image_set: ImageSet, images: Sequence[SetImage], count: int) -> str:
    """Return the command that brings back the drawings that images had."""
    kept = image_set.state.images
    images = [image for image in images if image.drawing.seed in {own.seed for own in kept[image.id].replaced}]
    if not images:  # they were not there
        return ""
    if count == 1:
        return command("restore", image_set.folder, *(image.name for image in images))
    # the others of the new drawings were kept last
    return " && ".join(
        command("restore", image_set.folder, image.name, "--seed", str(image.drawing.seed)) for image in images
    )


def explore(
    output: Path,
    prompt: str,
    count: int,
    reference_options: ReferenceOptions,
    extra_options: ExtraOptions,
    options: Mapping[str, Any],
    model: ModelOptions,
    report: ReportOptions,
) -> None:
    """Draw candidates for a reference."""
    extras = extra_options.resolve()
    settings: dict[str, Any] = {
        **preset_settings(extras), **reference_options.settings(), "options": dict(options)
    }  # fmt: skip
    check_reference_control(extras, settings)
    loaded = library.load_model(resolve_model(model.model), model, extras=extras)
    library.warn_about_prompts(loaded, [prompt, *filter(None, [reference_options.negative])])
    size = settings.get("size") or default_size(loaded)
    library.warn_about_size(loaded, size)
    with Progress.show() as progress:
        progress.describe("candidates")
        started = Report(start=progress.start, step=progress.step, image=progress.image, warn=warn)
        paths = explore_in(loaded, output, prompt, settings, count=count, report=started)
    sheet = output / SHEET_FILE
    described = {"folder": str(output), "sheet": str(sheet), "styles": [str(path) for path in paths]}
    first = paths[0].with_suffix("")
    shown = f"{sheet}: next, {propose_generate(first, prompt)}"
    shown += f", or any other than {first.name}" if len(paths) > 1 else ""
    report_result(described, shown, sheet, report)


def make_style(
    output: Path,
    source: Source,
    reference_options: ReferenceOptions,
    picture_options: PictureOptions,
    extra_options: ExtraOptions,
    options: Mapping[str, Any],
    model: ModelOptions,
) -> None:
    """Make a style file, from a prompt or a picture."""
    if source.kind == "picture" and reference_options.reference_control:
        raise ValueError("expected no --reference-control beside a picture as the reference, which is not drawn")
    extras = extra_options.resolve()
    settings: dict[str, Any] = {
        **preset_settings(extras), **reference_options.settings(), "options": dict(options)
    }  # fmt: skip
    check_reference_control(extras, settings)
    loaded = library.load_model(resolve_model(model.model), model, extras=extras)
    known = picture_options.caption if source.kind == "picture" else source.text
    library.warn_about_prompts(loaded, list(filter(None, [known, reference_options.negative])))
    library.warn_about_size(loaded, settings.get("size") or default_size(loaded))
    with Progress.show() as progress:
        if source.kind == "picture" and source.path is not None:
            if picture_options.method == Method.ddim:
                progress.start(1, settings.get("num_inference_steps") or family_of(loaded).num_inference_steps)
                progress.describe("inversion")
            given = {**settings, **picture_options.settings()}
            style = style_from_picture(loaded, source.path, given, on_step=progress.step)
        else:
            started = drawing.start_style(loaded, {**settings, "prompt": source.text})
            progress.start(1, started.num_inference_steps)
            progress.describe("reference")
            style = started.complete(loaded, on_step=progress.step)
        progress.image()
    output.parent.mkdir(parents=True, exist_ok=True)
    style.save(output)
    typer.echo(f"{output}: next, {propose_generate(output, style.prompt)}")


def caption(pictures: Sequence[Path | None], picture_options: PictureOptions, model: ModelOptions) -> None:
    """Print the captions of pictures."""
    loaded = library.load_model(resolve_model(model.model), model)
    for picture in filter(None, pictures):
        print_caption(loaded, picture, picture_options.captioner)


def _generate(
    job: Job,
    model: Model,
    backend: Backend | None,
    name: str,
    extras: Mapping[str, Any],
    settings: Mapping[str, Any],
    prompt_options: PromptOptions,
    init: InitOptions,
    draw: DrawOptions,
    progress: Progress,
) -> tuple[Done, ImageSet, int]:
    """Make a set, or go on with the one that is there. Returns what was drawn, and how many prompts it had."""
    prefix, suffix = affixes_of(job, prompt_options)
    new = new_set(
        job.source,
        _of_prompt(settings) if job.style is None else {},
        style=job.style,
        model=set_model_name(name),
        extras=extras,
        prefix=prefix,
        suffix=suffix,
    )
    style = job.style
    with _busy_set(job.folder, new=new) as image_set:
        given = (
            settings if job.style is None else {name: value for name, value in settings.items() if name == "options"}
        )
        if image_set.state is not new:
            check_same(image_set, job.source, given, style=job.style)
            own = image_set.state.reference.drawing.seed
            if job.style is None and own and "seed" not in settings:
                warn(f"{image_set.folder} goes on in the style of its reference, which has seed {own}")
        artist = _artist(
            image_set, model, backend, draw, progress, style, None if style is None else str(job.source.path)
        )
        progress.describe(_shorten(image_set.state.reference.prompt))
        library.warn_about_size(model, artist.style.size)
        _check_needs(artist, model, image_set, len(job.prompts), draw)
        seed = None if job.style is None or "seed" not in settings else settings["seed"] + 1
        plan = artist.plan(job.prompts, seed=seed, inputs=init.given)
        job.prompts = []  # of which there may be a million
        _remember(image_set, name, extras, prompt_options)
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
    compare = image_set.state.compare if draw.compare is None else draw.compare
    warnings = check_needs(
        model,
        image_set.folder,
        size=style.size,
        batch_size=min(draw.batch_size, max(1, count)),
        images=count * (2 if compare else 1),
        steps=style.num_inference_steps,
        force=draw.force,
    )
    for warning in warnings:
        warn(warning)


def _remember(image_set: ImageSet, model: str, extras: Mapping[str, Any], given: PromptOptions) -> None:
    """Have the set know of its model, of what goes beside it, and of its prefix and suffix."""
    known: dict[str, Any] = {} if image_set.state.model is not None else {"model": set_model_name(model)}
    if extras and not image_set.state.extras:
        known["extras"] = dict(extras)
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


def _shorten(text: str, length: int = 30) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
