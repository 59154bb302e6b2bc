"""What `generate` returns: images, drawn as they are asked for, that a notebook shows."""

import base64
import html
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload
from weakref import ref

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from style_aligned.files import describe_image, encode_png, write_png
from style_aligned.words import show

SHOWN = 64  # images in a notebook, at most
THUMBNAIL = 256  # pixels


@dataclass(frozen=True, eq=False, repr=False)
class Sample:
    """One generated image.

    Attributes:
        prompt: Its prompt.
        seed: The seed of its noise.
        latents: Its latents.
        image: The image itself.
        settings: What else it takes to make it again: the style, the model and the solver.
    """

    prompt: str
    seed: int
    latents: Float[Tensor, "1 4 height width"]
    image: Image.Image
    settings: dict[str, Any] = field(default_factory=dict[str, Any])

    def save(self, path: str | Path) -> None:
        """Write the image as PNG, with prompt, seed and settings in its text chunks.

        Args:
            path: The path of the file. What is there is replaced once the new file is complete.

        Raises:
            ValueError: If the path ends as a file of another type does.
            OSError: If the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise ValueError(f"expected a path that ends in .png, got {show(str(path))}")
        write_png(path, self.image, describe_image(self.prompt, self.seed, self.settings))

    def __repr__(self) -> str:
        return f"Sample({show(self.prompt, 50)}, seed={self.seed}, {self.image.width}x{self.image.height})"

    def _repr_png_(self) -> bytes:
        return encode_png(self.image)


if TYPE_CHECKING:
    SequenceOfSamples = Sequence[Sample]
else:
    SequenceOfSamples = Sequence  # programs that check types at run time look into what says what it holds


class Samples(SequenceOfSamples):
    """Images that are drawn as they are asked for, a chunk at a time, and kept for as long as this is.

    In `for sample in generate(…)` nothing keeps it: each image is let go once the next one is asked for, and sets of
    any size take the same memory. A notebook draws and shows them all.
    """

    def __init__(self, count: int, chunk_size: int, draw: Callable[[range], Iterator[Sample]], of: str) -> None:
        """Initialize the Samples.

        Args:
            count: The number of images.
            chunk_size: The number of images that are drawn together.
            draw: Draws some images that follow each other, and hands them out in their order.
            of: What they are images of.
        """
        self._count = count
        self._chunk_size = chunk_size
        self._draw = draw
        self._of = of
        self._drawn: dict[int, Sample] = {}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sample]:
        return _iterate(ref(self), self._count, self._chunk_size, self._draw)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> "list[Sample]": ...

    def __getitem__(self, index: int | slice) -> "Sample | list[Sample]":
        if isinstance(index, slice):
            return SampleList(self[each] for each in range(*index.indices(self._count)))
        if not -self._count <= index < self._count:
            raise IndexError(f"expected the index of one of {self._count} images, got {index}")
        position = index % self._count
        if position not in self._drawn:
            start = position - position % self._chunk_size
            chunk = range(start, min(start + self._chunk_size, self._count))
            for each, sample in zip(chunk, self._draw(chunk), strict=True):
                self._drawn.setdefault(each, sample)
        return self._drawn[position]

    def __repr__(self) -> str:
        return f"Samples({self._count} of {self._of}, {len(self._drawn)} drawn)"

    def _repr_html_(self) -> str:
        return to_html([self[index] for index in range(min(SHOWN, self._count))], self._count)


class SampleList(list[Sample]):
    """A list of samples that a notebook shows."""

    def _repr_html_(self) -> str:
        return to_html(self[:SHOWN], len(self))


def to_html(samples: Sequence[Sample], count: int) -> str:
    """Return HTML that shows samples in small, with their prompts.

    Args:
        samples: The samples.
        count: The number of all samples there are.
    """
    figures: list[str] = []
    for sample in samples:
        image = sample.image.copy()
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        picture = base64.b64encode(buffer.getvalue()).decode()
        caption = html.escape(sample.prompt)
        figures.append(
            f'<figure style="margin:0;max-width:{image.width}px"><img src="data:image/png;base64,{picture}"'
            f' alt="{caption}"><figcaption>{caption}</figcaption></figure>'
        )
    more = f"<p>and {count - len(samples)} more</p>" if count > len(samples) else ""
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(figures)}</div>{more}'


def _iterate(
    samples: "ref[Samples]", count: int, chunk_size: int, draw: Callable[[range], Iterator[Sample]]
) -> Iterator[Sample]:
    """Hand out images. They are kept by the sequence that they are of, if anything keeps that."""
    for start in range(0, count, chunk_size):
        drawn: Iterator[tuple[int, Sample]] | None = None
        stop = min(start + chunk_size, count)
        for index in range(start, stop):
            kept = samples()
            sample = None if kept is None else kept._drawn.get(index)  # pyright: ignore[reportPrivateUsage]
            if sample is None:
                if drawn is None:
                    drawn = zip(chunk := range(index, stop), draw(chunk), strict=True)
                # others may have drawn some of them meanwhile
                sample = next(sample for position, sample in drawn if position == index)
                if kept is not None:
                    kept._drawn[index] = sample  # pyright: ignore[reportPrivateUsage]
            del kept
            yield sample
            del sample
