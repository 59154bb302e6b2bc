"""What people do on the page, as calls of `style_aligned.sets`. Drawing is left to a job, everything else is done."""

import io
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast

from style_aligned.files import write_bytes
from style_aligned.models.model import Model
from style_aligned.options import SETTINGS, STYLE_OPTIONS, check_options
from style_aligned.sets import changes
from style_aligned.sets.create import new_set
from style_aligned.sets.explore import explore
from style_aligned.sets.export import plan_export
from style_aligned.sets.image_set import ImageSet, open_set, read_image_set
from style_aligned.sets.names import check_name, find_image
from style_aligned.sets.prompts import check_prompt, collect_prompts
from style_aligned.sets.records import MAX_SEED, BusyError, SetError, SetImage
from style_aligned.sets.sheet import sheet_path, write_sheet
from style_aligned.sets.sources import STYLE_ENDING, Source, find_style
from style_aligned.sets.work import Artist, How
from style_aligned.styles.style import Style
from style_aligned.web.jobs import Job, Jobs
from style_aligned.web.library import LOOKS, Library

CHUNK_SECONDS = 5.0  # images show up batch by batch
IN_MEMORY = 64 << 20  # bytes of a zip file
MAX_PROMPTS = 1000  # at a time


@dataclass(frozen=True)
class Settings:
    """What people have chosen beside the prompts. None means what suits the model.

    Attributes:
        reference: Arguments of `Style.from_prompt`, by name.
        options: Options of the adapter, by name.
        batch_size: The number of images that go through the model at a time.
    """

    reference: Mapping[str, Any] = field(default_factory=dict[str, Any])
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    batch_size: int = 4

    def check(self) -> None:
        """Check each of them.

        Raises:
            TypeError: If one is not of its type.
            ValueError: If one is out of its range.
        """
        for name in ("num_inference_steps", "condition_scale"):
            if name in self.reference:
                SETTINGS[name].check(self.reference[name], SETTINGS[name].cli_name.removeprefix("--"))
        SETTINGS["batch_size"].check(self.batch_size)
        seed = self.reference.get("seed", 0)
        if not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            raise ValueError(f"expected the seed to be a whole number from 0 to {MAX_SEED}, got {seed!r}")
        for side in self.reference.get("size", ()):
            if side % 8 != 0 or not 64 <= side <= 8192:
                raise ValueError(f"expected width and height to be multiples of 8 between 64 and 8192, got {side}")
        check_options(self.options, STYLE_OPTIONS)


class LazyModel:
    """The model of the page, loaded when it is asked for."""

    def __init__(self, name: str, load: Callable[[], Model]) -> None:
        """Keep what loads it.

        Args:
            name: Its name, as sets have it.
            load: Loads it.
        """
        self.name = name
        self.error = ""
        self._load = load
        self._model: Model | None = None
        self._lock = threading.Lock()

    @property
    def is_loaded(self) -> bool:
        """Whether it is there."""
        return self._model is not None

    def get(self) -> Model:
        """Return the model. If it could not be loaded before, it is tried again.

        Raises:
            ValueError: If it does not load, with what to do.
        """
        with self._lock:
            if self._model is None:
                try:
                    self._model = self._load()
                    self.error = ""
                except Exception as error:
                    text = " ".join(str(error).split()) or type(error).__name__
                    self.error = f"the model {self.name} does not load: {text}"
                    raise ValueError(f"{self.error} (start style-aligned web with another --model)") from error
            return self._model


class Actions:
    """What people do on the page."""

    def __init__(self, library: Library, jobs: Jobs, model: LazyModel) -> None:
        """Keep what they do it with."""
        self.library = library
        self.jobs = jobs
        self.model = model
        self._new = threading.Lock()  # two people who start a set at a time get a folder each

    def create(
        self,
        reference: str,
        style: str,
        prompts: str,
        settings: Settings,
        name: str = "",
        picture: Path | None = None,
    ) -> str:
        """Start a set, and have it drawn.

        Args:
            reference: The prompt of the reference. Empty if there is a style, or to have a picture captioned.
            style: The name of the style in the library, if the reference is one of before.
            prompts: What to draw, a prompt a line.
            settings: The settings.
            name: The name of the set. Empty makes one of the reference.
            picture: A picture for the reference.

        Returns:
            The name of the set.

        Raises:
            ValueError: If something is not as it should be, with what to do.
        """
        settings.check()
        texts, notes = _lines(prompts), list[str]()
        if style:
            source = find_style(str(self.library.style_path(style)))
            source = replace(source, text=style)
            loaded = Style.load(self.library.style_path(style)).with_(**settings.options)
            given: dict[str, Any] = {}
        elif picture is not None:
            source, given = Source("picture", "picture", picture), {}
            loaded, notes = self._take_picture(picture, reference, settings)
        else:
            source, loaded = Source("prompt", check_prompt(reference, "the reference")), None
            given = {**settings.reference, **({"options": dict(settings.options)} if settings.options else {})}
        with self._new:
            folder = self.library.new_folder(name, source.text if loaded is None else loaded.prompt)
            affixes = {"prefix": source.prefix, "suffix": source.suffix}
            state = new_set(source, given, style=loaded, model=self.model.name, extras=source.extras, **affixes)
            collected = collect_prompts(texts, **affixes)
            with open_set(folder, new=state):
                pass

        def run(job: Job) -> None:
            with open_set(folder) as image_set:
                artist = Artist(image_set, self.model.get(), _how(settings), job.report(), loaded)
                artist.plan(collected)
                artist.draw_missing()

        job = self.jobs.submit(folder.name, f"drawing {_count(len(collected), 'image')}", run)
        job.notes.extend(notes)
        return folder.name

    def _take_picture(self, picture: Path, prompt: str, settings: Settings) -> tuple[Style, list[str]]:
        """Make the style of a picture. What was done to it is told in words."""
        given: dict[str, Any] = {**settings.reference, **settings.options}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                style = Style.from_image(self.model.get(), picture, prompt.strip() or None, **given)
            except (ValueError, OSError) as error:
                raise ValueError(str(error).replace(str(picture), "the picture")) from error
        return style, [str(warning.message).replace(str(picture), "the picture") for warning in caught]

    def take_style(self, upload: Path) -> str:
        """Take a style file into the folder.

        Args:
            upload: A copy of the file, whose name means nothing.

        Returns:
            The name of the style in the library.

        Raises:
            ValueError: If it is no style file.
        """
        try:
            style = Style.load(upload)
        except ValueError as error:
            reason = str(error).replace(str(upload), "the file")
            raise ValueError(f"expected a style file of style-aligned, got another one: {reason}") from error
        with self._new:
            folder = self.library.new_folder("", style.prompt)
            write_bytes(folder.with_name(f"{folder.name}{STYLE_ENDING}"), upload.read_bytes())
        return folder.name

    def explore(self, reference: str, count: int, settings: Settings) -> str:
        """Have candidates for a reference drawn.

        Args:
            reference: The prompt.
            count: The number of candidates.
            settings: The settings. Seeds count on from `seed`.

        Returns:
            The name of their folder.
        """
        settings.check()
        prompt = check_prompt(reference, "the reference")
        if not 1 <= count <= 64:
            raise ValueError(f"expected 1 to 64 candidates, got {count}")
        with self._new:
            folder = self.library.new_folder("", f"{prompt} {LOOKS}")
            folder.mkdir(parents=True)
        given = {**settings.reference, "options": dict(settings.options)}

        def run(job: Job) -> None:
            explore(self.model.get(), folder, prompt, given, count=count, report=job.report())

        self.jobs.submit(folder.name, f"drawing {_count(count, 'candidate')}", run)
        return folder.name

    def add(self, name: str, prompts: str, settings: Settings) -> None:
        """Have images added to a set, and those drawn that it is missing. Without prompts, only these.

        Args:
            name: The name of the set.
            prompts: What to draw, a prompt a line.
            settings: The settings, of which the new images get the options.
        """
        settings.check()
        folder = self.library.path(name)
        state = read_image_set(folder).state
        texts = _lines(prompts) if prompts.strip() else []
        collected = collect_prompts(texts, prefix=state.prefix, suffix=state.suffix)

        def run(job: Job) -> None:
            with open_set(folder) as image_set:
                artist = Artist(image_set, self.model.get(), _how(settings), job.report())
                artist.plan(collected, options=settings.options)
                artist.draw_missing()

        self.jobs.submit(name, f"drawing {_count(len(collected), 'image') if texts else 'what is missing'}", run)

    def reroll(self, name: str, image: str | int, seed: int | None = None) -> None:
        """Have an image drawn again, from another seed."""
        Settings({"seed": seed or 0}).check()
        folder = self.library.path(name)
        shown = _find(folder, image)

        def run(job: Job) -> None:
            with open_set(folder) as image_set:
                artist = Artist(image_set, self.model.get(), _how(Settings()), job.report())
                artist.reroll(image_set.state.images[shown.id], seed=seed)

        self.jobs.submit(name, f"drawing {shown.name} again", run)

    def compare(self, name: str, image: str | int) -> None:
        """Have an image drawn without the style too, unless that is there."""
        folder = self.library.path(name)
        shown = _find(folder, image)

        def run(job: Job) -> None:
            with open_set(folder) as image_set:
                artist = Artist(image_set, self.model.get(), _how(Settings()), job.report())
                artist.draw_unaligned([image_set.state.images[shown.id]])

        self.jobs.submit(name, f"drawing {shown.name} without the style", run)

    def rename(self, name: str, image: str | int, new_name: str) -> None:
        """Give an image another name."""
        shown = _find(self.library.path(name), image)
        check_name(new_name)
        self._change(
            name,
            f"renaming {shown.name}",
            lambda image_set: changes.rename_image(image_set, image_set.state.images[shown.id], new_name),
        )

    def remove(self, name: str, image: str | int) -> None:
        """Take an image out of a set."""
        shown = _find(self.library.path(name), image)
        self._change(
            name,
            f"removing {shown.name}",
            lambda image_set: changes.remove_image(image_set, image_set.state.images[shown.id]),
        )

    def restore(self, name: str, image: str, seed: int | None = None) -> None:
        """Bring back an image that was removed, or an earlier drawing of one: that of a seed, or the last one."""
        self.library.path(name)
        self._change(
            name, f"bringing back {image}", lambda image_set: changes.restore_image(image_set, image, seed=seed)
        )

    def _change(self, name: str, what: str, change: Callable[[ImageSet], SetImage]) -> None:
        """Change a set now, or once what is at work in it has ended."""
        folder = self.library.path(name)

        def run(job: Job | None = None) -> None:
            with open_set(folder) as image_set:
                change(image_set)
                write_sheet([image_set], sheet_path(image_set))

        try:
            run()
        except BusyError:
            self.jobs.submit(name, what, run)

    def cancel(self, name: str) -> None:
        """Cancel what is drawn or waits in a folder. What is on the disk stays."""
        self.jobs.cancel(name)

    def zip(self, name: str) -> BinaryIO:
        """Return a zip file of a set's images, with names that say what they show, and its contact sheet.

        Who takes it closes it.
        """
        image_set = read_image_set(self.library.path(name))
        planned = plan_export(image_set, reference=True)
        if not planned:
            raise SetError(f"{name} has no images yet")
        file = cast(BinaryIO, SpooledTemporaryFile(IN_MEMORY, dir=str(self.library.folder)))  # noqa: SIM115
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # PNG files are compressed
            for file_name, image in planned.items():
                archive.writestr(zipfile.ZipInfo(f"{name}/{file_name}"), image_set.path(image).read_bytes())
            if (sheet := sheet_path(image_set)).is_file():
                archive.writestr(zipfile.ZipInfo(f"{name}/{sheet.name}"), sheet.read_bytes())
        file.seek(0, io.SEEK_SET)
        return file


def _how(settings: Settings) -> How:
    return How(batch_size=settings.batch_size, chunk_seconds=CHUNK_SECONDS)


def _lines(prompts: str) -> list[str]:
    """Break a text into prompts, a line each."""
    lines = [line.strip() for line in prompts.split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise ValueError("expected at least one prompt to draw, a line each, got none")
    if len(lines) > MAX_PROMPTS:
        raise ValueError(f"expected at most {MAX_PROMPTS:,} prompts at a time, got {len(lines):,}")
    return lines


def _find(folder: Path, image: str | int) -> SetImage:
    """Find an image by its id, or by what people call it."""
    state = read_image_set(folder).state
    if isinstance(image, str):
        return find_image(state.current, image)
    if image not in state.images or state.images[image].is_removed:
        raise SetError(f"there is no image {image} any more")
    return state.images[image]


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
