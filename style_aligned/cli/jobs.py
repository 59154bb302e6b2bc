"""The sets of a run of `generate`: where the style of each comes from, where it goes, and what it draws."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from style_aligned.cli import inputs
from style_aligned.cli.options import PromptOptions, ReferenceOptions
from style_aligned.files import numbered
from style_aligned.models.presets import PRESETS
from style_aligned.sets.image_set import is_set, read_image_set, sole_use
from style_aligned.sets.prompts import Prompt
from style_aligned.sets.set_file import SHEET_FILE
from style_aligned.sets.sheet import check_sheet
from style_aligned.sets.sources import Source, find_blend, find_source, find_style
from style_aligned.styles.style import Style


@dataclass
class Job:
    """One set of a run of `generate`."""

    source: Source
    folder: Path
    style: Style | None = None
    prompts: list[Prompt] = field(default_factory=list[Prompt])


def find_sources(
    texts: Sequence[str], references: Sequence[str], styles: Sequence[str], *, blend: bool = False
) -> tuple[list[Source], list[str]]:
    """Tell the texts for styles from what to draw."""
    if blend:
        inputs.reject({"--reference": references or None}, "beside --blend, which takes style files")
        return [find_blend(styles)], list(texts)
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
    return [*sources, *(find_style(text, pictures=True) for text in styles)], list(texts)


def load_style(source: Source, settings: Mapping[str, Any]) -> Style | None:
    """Return the style of a source that has one before a model is there, as the settings change it."""
    match source.kind:
        case "style" if source.path is not None:
            style = Style.load(source.path)
        case "blend":
            style = Style.blend([(Style.load(path), weight) for path, weight in source.parts])
        case _:
            return None
    changes = {**settings.get("options", {})}
    if "reference_mask" in settings:
        changes["reference_mask"] = settings["reference_mask"]
    return style.with_(**changes)


def set_folder(output: Path, sources: Sequence[Source], index: int) -> Path:
    """Return the folder of a source's set."""
    return output if len(sources) == 1 else output / numbered(index, len(sources), sources[index].name)


def affixes_of(job: Job, given: PromptOptions) -> tuple[str, str]:
    """Return prefix and suffix: those given, else those of the set that is there, else those of the style's set."""
    known: Any = read_image_set(job.folder).state if is_set(job.folder) else job.source
    prefix = known.prefix if given.prefix is None else given.prefix
    return prefix, known.suffix if given.suffix is None else given.suffix


def known_models(job: Job) -> Iterable[str | None]:
    """Yield the names of the models that the set and the style of a job know."""
    if is_set(job.folder):
        yield read_image_set(job.folder).state.model
    yield job.source.model
    if job.style is not None and job.style.model["class"] == "Mini":
        yield "mini"


def known_extras(job: Job) -> Iterable[Mapping[str, Any]]:
    """Yield what the set and the style of a job say goes beside StyleAligned."""
    if is_set(job.folder):
        yield read_image_set(job.folder).state.extras
    yield job.source.extras


def preset_settings(extras: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a new reference that follow from a preset, if there is one."""
    if "preset" not in extras:
        return {}
    preset = PRESETS[extras["preset"]]
    return {"num_inference_steps": preset.num_inference_steps, "condition_scale": preset.condition_scale}


def check_folders(output: Path, jobs: Sequence[Job]) -> None:
    """Check what can be checked without the model: that nobody is at work there, and nothing is in the way."""
    for job in jobs:
        inputs.check_output_folder(job.folder)
        if job.folder.is_dir():
            with sole_use(job.folder):
                pass
        check_sheet(job.folder / SHEET_FILE)
    check_sheet(output / SHEET_FILE)


def all_texts(jobs: Sequence[Job], reference_options: ReferenceOptions) -> list[str]:
    """Return all that a run encodes as text."""
    texts = [job.source.text for job in jobs if job.source.path is None]
    texts += [prompt.text for job in jobs for prompt in job.prompts]
    return [*dict.fromkeys(texts), *filter(None, [reference_options.negative])]
