"""What draws the images of a set: a model of this process, or something else with the same methods."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from PIL.Image import Image
from torch import Tensor

from style_aligned.models.model import Model
from style_aligned.sampling.generation import OnLatents
from style_aligned.sets import drawing
from style_aligned.sets.records import SetImage
from style_aligned.styles.style import Style

CHUNK_SECONDS = 60.0
MAX_CHUNK = 1024  # images: their latents are in memory until they are done

OnStep = Callable[[int], None]
Preview = Callable[[Sequence[str], Callable[[int], Image]], None]


@dataclass(frozen=True)
class How:
    """How to draw.

    Attributes:
        batch_size: The number of images that go through the model at a time.
        chunk_seconds: The time after which images are written, about: the reference is recorded once for all that are
            drawn in that time. The first images are written after a single batch.
        bank_device: Where to keep what is recorded of the reference. None means where the model is.
        compare: Whether to draw the images without the style too, which the set remembers. None means what it says.
        force: Whether to use a style of other weights.
    """

    batch_size: int = 4
    chunk_seconds: float = CHUNK_SECONDS
    bank_device: str | None = None
    compare: bool | None = None
    force: bool = False


class Backend:
    """Draws with a model of this process."""

    def __init__(self, model: Model, how: How) -> None:
        """Initialize the Backend.

        Args:
            model: The model.
            how: How to draw.
        """
        self.model = model
        self.how = how
        self._chunk = how.batch_size

    def start_style(self, settings: Mapping[str, Any]) -> Style:
        """Start a style from a prompt. Its steps may be left to do.

        Args:
            settings: As `start_style` of `style_aligned.sets.drawing` takes them.
        """
        return drawing.start_style(self.model, settings)

    def complete_style(self, style: Style, on_step: OnStep) -> None:
        """Do the steps of a style that are left."""
        style.complete(self.model, on_step=on_step)

    def image_of(self, style: Style) -> Image:
        """Return the image of a style's reference."""
        return style.image(self.model)

    def draw(
        self,
        style: Style,
        images: Sequence[SetImage],
        *,
        is_aligned: bool,
        on_step: OnStep,
        preview: Preview | None = None,
    ) -> Iterator[tuple[Sequence[SetImage], Iterator[Image | bytes]]]:
        """Draw images, a chunk at a time: first a single batch, then as many as are drawn in the time of a chunk.

        Args:
            style: The style, with the options for these images. Its steps that are left are done along with those of
                the first chunk.
            images: The images.
            is_aligned: Whether they follow the style.
            on_step: Called as steps get done, with the number of images that have done one.
            preview: Called after a step of some images that are drawn here, with the names of their files, and what
                decodes one of them by its index, as it is so far.

        Yields:
            The images of a chunk, in any order of chunks, and for each of them what is drawn: an image, or a PNG file
            with its settings inside.
        """
        start = 0
        while start < len(images):
            chunk = images[start : start + self._chunk]
            began = monotonic()
            samples = drawing.draw(
                self.model,
                style,
                [image.prompt for image in chunk],
                [image.drawing.seed for image in chunk],
                is_aligned=is_aligned,
                batch_size=self.how.batch_size,
                inputs=[image.drawing.inputs for image in chunk],
                bank_device=self.how.bank_device,
                on_step=on_step,
                on_latents=None if preview is None else self._show(preview, [image.drawing.file for image in chunk]),
            )
            yield chunk, (sample.image for sample in samples)
            seconds = (monotonic() - began) / (len(chunk) + is_aligned)  # the reference takes as long as an image
            batches = self.how.chunk_seconds / max(seconds, 1e-6) // self.how.batch_size
            self._chunk = min(MAX_CHUNK, max(1, int(batches)) * self.how.batch_size)
            start += len(chunk)

    def _show(self, preview: Preview, files: Sequence[str]) -> OnLatents:
        """Return what shows images of a chunk as they are so far."""

        def show(indices: Sequence[int], latents: Sequence[Tensor]) -> None:
            preview([files[index] for index in indices], lambda index: drawing.decode(self.model, latents[index]))

        return show
