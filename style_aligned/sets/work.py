"""Drawing what a set is missing: a chunk at a time, each image on the disk as soon as it is there."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

from PIL.Image import Image

from style_aligned.files import describe_image, encode_png, parse_settings, read_texts, write_bytes
from style_aligned.models.model import Model
from style_aligned.sets import drawing
from style_aligned.sets.backend import Backend, How, Preview
from style_aligned.sets.changes import aside_file, make_current
from style_aligned.sets.image_set import ImageSet
from style_aligned.sets.inputs import describe_inputs
from style_aligned.sets.masks import write_mask
from style_aligned.sets.names import free_name
from style_aligned.sets.plan import Missing, Plan, find_missing, plan_images, taken_names, unused_seed, used_seeds
from style_aligned.sets.prompts import Prompt
from style_aligned.sets.records import UNALIGNED, Drawing, SetImage
from style_aligned.sets.sheet import check_sheet, sheet_path, write_sheet
from style_aligned.styles.style import Style

AT_ONCE = 4096  # records in a line of the journal


@dataclass
class Report:
    """Who wants to know how far the work is. Each of them may be left as it is.

    Attributes:
        start: Called before anything is drawn, with the number of images to draw and of all their steps.
        step: Called as steps get done, with the number of images that have done one.
        image: Called for each image that is on the disk, with its path relative to the set's folder.
        warn: Called with what people should know.
        preview: Called after a step of some images, with the names of their files, and what decodes one of them by its
            index, as it is so far.
    """

    start: Callable[[int, int], None] = lambda images, steps: None
    step: Callable[[int], None] = lambda count: None
    image: Callable[[str], None] = lambda file: None
    warn: Callable[[str], None] = lambda message: None
    preview: Preview | None = None


@dataclass
class Done:
    """What was drawn.

    Attributes:
        images: The images that were drawn.
        twins: The images that were drawn without the style.
        missing: What was missing before.
    """

    images: list[SetImage] = field(default_factory=list[SetImage])
    twins: list[SetImage] = field(default_factory=list[SetImage])
    missing: Missing = field(default_factory=Missing)


class Artist:
    """Draws the images of a set with a model."""

    def __init__(
        self,
        image_set: ImageSet,
        model: Model,
        how: How | None = None,
        report: Report | None = None,
        style: Style | None = None,
        style_name: str | None = None,
        backend: Backend | None = None,
    ) -> None:
        """Take the style of the set, and check that it fits the model. Nothing is drawn or written yet.

        Args:
            image_set: The set, open for writing.
            model: The model.
            how: How to draw.
            report: Who wants to know.
            style: The style, for a set that has no style file yet. None makes it from what the set says.
            style_name: What an error calls the style. None means its file in the set's folder.
            backend: What draws in place of the model, such as the workers of a cluster.

        Raises:
            StyleError: If the style is damaged, or does not fit the model.
            SetError: If a picture of another program is where the contact sheet is to be.
        """
        check_sheet(sheet_path(image_set))
        self.image_set = image_set
        self.model = model
        self.how = how or How()
        self.report = report or Report()
        self._drawer = drawing.describe_drawer(model)
        self._backend = backend or Backend(model, self.how)
        self._style = self._take_style(style)
        name = str(image_set.style_path) if style_name is None else style_name
        if (warning := drawing.check_fit(self._style, model, name, force=self.how.force)) is not None:
            self.report.warn(warning)

    @property
    def style(self) -> Style:
        """The style of the set, which may have steps left."""
        return self._style

    def plan(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int | None = None,
        options: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Have the set know of images that are to be drawn: what is killed from here on can go on.

        Args:
            prompts: The prompts. Those that the set has images of are left as they are.
            seed: The seed of the first new image.
            options: Options of the adapter for the new images alone.
            inputs: What else goes into them, unless their prompts say it.

        Returns:
            What is new, and what is there.
        """
        plan = plan_images(self.image_set, prompts, seed=seed, options=options, inputs=inputs)
        for own in {json.dumps(image.drawing.inputs): image.drawing.inputs for image in plan.new}.values():
            describe_inputs(own, self._style.size)  # what is wrong with a picture is said before the set knows of it
        if self._style.is_complete and not self.image_set.style_path.is_file():
            self._style.save(self.image_set.style_path)
        if plan.ignored:
            names = ", ".join(image.name for image in plan.there[:4])
            self.report.warn(
                f"what is there keeps its {' and '.join(plan.ignored)}: {names}{', …' if len(plan.there) > 4 else ''}"
                f" (style-aligned reroll {self.image_set.folder} draws images again)"
            )
        for start in range(0, len(plan.new), AT_ONCE):  # the same call goes on in the middle of a million
            self.image_set.commit(plan.new[start : start + AT_ONCE])
        self._remember_comparison()
        return plan

    def draw_missing(self) -> Done:
        """Draw what of the set is missing: images, the reference, and the unaligned ones if the set is to have them.

        Raises:
            OSError: If a file cannot be written. What is there stays, and the same call goes on from there.
        """
        self._remember_comparison()
        missing = find_missing(self.image_set)
        for image in missing.found:
            self._record_found(image)
        compare = self.image_set.state.compare
        twins = self._missing_twins() if compare else []
        needs_reference = not self.image_set.path(self.image_set.state.reference).is_file()
        count = len(missing.images) * (1 + compare) + len(twins)
        count += not self._style.is_complete
        done = Done(missing=missing)
        if count or needs_reference:
            self.report.start(count, count * self._style.num_inference_steps)
        for options, images in _by_options(missing.images):
            for image, picture in self._draw_images(images, options):
                done.images.append(self._write_missing(image, picture))
        self._finish_style()
        done.twins = twins + done.images if compare else []
        self._draw_twins(done.twins)
        self.write_sheet()
        return done

    def reroll(
        self,
        image: SetImage,
        *,
        seed: int | None = None,
        count: int = 1,
        options: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> SetImage:
        """Draw an image again, from another seed. The first new drawing takes the place of the one that is there.

        The others are in the folder `replaced`, as is the old one.

        Args:
            image: The image.
            seed: The seed of the first new drawing. None takes the next one that the set has not used.
            count: The number of new drawings.
            options: Options of the adapter for them alone. None keeps those of the image.
            inputs: What else goes into them. None keeps what went into the image.

        Returns:
            The image as it is then.
        """
        used = used_seeds(self.image_set)
        first = max(used) + 1 if seed is None else seed
        seeds: list[int] = []
        for index in range(count):
            own = first if index == 0 and seed is not None else unused_seed(used, first + index)
            seeds.append(own)
            used.add(own)
        options = dict(image.drawing.options if options is None else {**image.drawing.options, **options})
        inputs = dict(inputs or image.drawing.inputs)
        jobs = [replace(image, drawing=Drawing(own, "", options=options, inputs=inputs)) for own in seeds]
        self._remember_comparison()
        compare = self.image_set.state.compare
        total = count + compare + (not self._style.is_complete)
        self.report.start(total, total * self._style.num_inference_steps)
        is_first = True
        for job, picture in self._draw_images(jobs, options):
            image = self.image_set.state.images[image.id]
            file = aside_file(self.image_set, f"{image.name}-seed-{job.drawing.seed}")
            new = self._write(job.with_drawing(file=file), picture).drawing
            if is_first:
                make_current(self.image_set, image, new)
            else:
                self.image_set.commit([replace(image, replaced=(*image.replaced, new))])
            is_first = False
        self._finish_style()
        image = self.image_set.state.images[image.id]
        self._draw_twins([image] if compare else [])
        self.write_sheet()
        return self.image_set.state.images[image.id]

    def draw_unaligned(self, images: Sequence[SetImage]) -> None:
        """Draw images without the style too, unless that is there.

        Args:
            images: The images. Those that are not drawn yet are left out.
        """
        twins = [image for image in self._missing_twins() if image in images]
        self.report.start(len(twins), len(twins) * self._style.num_inference_steps)
        self._finish_style()
        self._draw_twins(twins)
        self.write_sheet()

    def write_sheet(self) -> None:
        """Draw the contact sheet anew."""
        write_sheet([self.image_set], sheet_path(self.image_set))

    def _remember_comparison(self) -> None:
        """Have the set know whether its images are drawn without the style too, if that was said."""
        if self.how.compare not in (None, self.image_set.state.compare):
            self.image_set.commit_settings(compare=self.how.compare)

    def _take_style(self, given: Style | None) -> Style:
        path = self.image_set.style_path
        if path.is_file():
            return Style.load(path)
        if given is not None:
            return given
        settings = {"prompt": self.image_set.state.reference.prompt, **self.image_set.state.style}
        settings["seed"] = self.image_set.state.reference.drawing.seed
        return self._backend.start_style(settings)

    def _draw_images(
        self, images: Sequence[SetImage], options: Mapping[str, Any]
    ) -> Iterator[tuple[SetImage, Image | bytes]]:
        """Draw images with the same options, chunk by chunk. The sheet is drawn anew between chunks."""
        if self._style.is_complete:
            self._finish_style()  # what is not complete yet becomes so along with the first chunk
        style = self._style.with_(**options)
        chunks = self._backend.draw(
            style, images, is_aligned=True, on_step=self.report.step, preview=self.report.preview
        )
        shown = monotonic()
        for number, (chunk, pictures) in enumerate(chunks):
            # not after each chunk of many workers, which takes as long as some images
            if number == 1 or (number > 1 and monotonic() - shown >= self.how.chunk_seconds / 2):
                self.write_sheet()
                shown = monotonic()
            for index, (image, picture) in enumerate(zip(chunk, pictures, strict=True)):
                if index == 0:
                    self._finish_style()
                yield image, picture

    def _finish_style(self) -> None:
        """Do the steps of the style that are left, and write its file and the reference's image, if they are not there.

        Both are there before any image that follows them.
        """
        if not self._style.is_complete:
            self._backend.complete_style(self._style, self.report.step)
        if not self.image_set.style_path.is_file():
            self._style.save(self.image_set.style_path)
        write_mask(self.image_set.folder, self._style.reference_mask)
        reference = self.image_set.state.reference
        if not self.image_set.path(reference).is_file():
            settings = drawing.image_settings(self._style, self._drawer)
            picture = self._backend.image_of(self._style)
            self.image_set.commit([self._write_file(reference, picture, settings)])

    def _write_missing(self, image: SetImage, picture: Image | bytes) -> SetImage:
        """Write an image to its place. What is there is moved away, or left if it is another program's."""
        path = self.image_set.path(image)
        if path.exists() and image.drawing.is_drawn:  # damaged
            aside = aside_file(self.image_set, image.name)
            self.image_set.commit(moves=[(image.drawing.file, aside)])
        elif path.exists() or path.is_symlink():
            image = image.with_drawing(file=f"{free_name(image.name, taken_names(self.image_set))}.png")
        written = self._write(image, picture)
        self.image_set.commit([written])
        return written

    def _write(self, image: SetImage, picture: Image | bytes) -> SetImage:
        """Write an image that follows the style, and return its record, which is not in the set yet."""
        style = self._style.with_(**image.drawing.options)
        settings = drawing.image_settings(style, self._drawer, is_aligned=True)
        return self._write_file(image, picture, {**settings, **describe_inputs(image.drawing.inputs, style.size)})

    def _write_file(self, image: SetImage, picture: Image | bytes, settings: Mapping[str, Any]) -> SetImage:
        path = self.image_set.path(image)
        key = self.image_set.settings_key(settings)
        _write_picture(path, picture, describe_image(image.prompt, image.drawing.seed, settings))
        self.report.image(image.drawing.file)
        return image.with_drawing(made_with=key, bytes=path.stat().st_size)

    def _record_found(self, image: SetImage) -> None:
        path = self.image_set.path(image)
        settings = parse_settings(read_texts(path)) or {}
        key = self.image_set.settings_key(settings)
        self.image_set.commit([image.with_drawing(made_with=key, bytes=path.stat().st_size)])

    def _missing_twins(self) -> list[SetImage]:
        return [
            image
            for image in self.image_set.state.current
            if image.drawing.is_drawn
            and self.image_set.path(image).is_file()
            and not (image.drawing.unaligned and (self.image_set.folder / image.drawing.unaligned).is_file())
        ]

    def _draw_twins(self, images: Sequence[SetImage]) -> None:
        """Draw images without the style."""
        if not images:
            return
        settings = drawing.image_settings(self._style, self._drawer, is_aligned=False)
        folder = self.image_set.folder / UNALIGNED
        folder.mkdir(exist_ok=True)
        for chunk, pictures in self._backend.draw(
            self._style, images, is_aligned=False, on_step=self.report.step, preview=self.report.preview
        ):
            for image, picture in zip(chunk, pictures, strict=True):
                taken = {path.stem.casefold() for path in folder.iterdir()}
                file = image.drawing.unaligned or f"{UNALIGNED}/{free_name(image.name, taken)}.png"
                own = {**settings, **describe_inputs(image.drawing.inputs, self._style.size)}
                texts = describe_image(image.prompt, image.drawing.seed, own)
                _write_picture(self.image_set.folder / file, picture, texts)
                self.image_set.commit([self.image_set.state.images[image.id].with_drawing(unaligned=file)])
                self.report.image(file)


def _write_picture(path: Path, picture: Image | bytes, texts: Mapping[str, str]) -> None:
    """Write an image with its texts, or the file of one that has them."""
    write_bytes(path, picture if isinstance(picture, bytes) else encode_png(picture, texts))


def _by_options(images: Sequence[SetImage]) -> Iterator[tuple[Mapping[str, Any], list[SetImage]]]:
    """Group images by their own options, those without any first."""
    groups: list[tuple[Mapping[str, Any], list[SetImage]]] = [({}, [])]
    for image in images:
        for options, group in groups:
            if options == image.drawing.options:
                group.append(image)
                break
        else:
            groups.append((image.drawing.options, [image]))
    yield from ((options, group) for options, group in groups if group)
