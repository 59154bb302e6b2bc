"""What a worker does: it loads a model once, and draws what it is told."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from style_aligned.cluster.connect import import_ray
from style_aligned.files import describe_image, encode_png

if TYPE_CHECKING:
    from style_aligned.styles.style import Style
else:
    Style = Any  # annotations are evaluated, and a process says what goes wrong once it has started


@dataclass(frozen=True)
class Task:
    """Images to draw in the style of one reference.

    Attributes:
        style: Where the style's file is in the memory of the cluster, in a list: else Ray would fetch it for each task.
        images: The prompt, the seed and the inputs of each image.
        is_aligned: Whether they follow the style.
        batch_size: The number of images that go through the model at a time.
        bank_device: Where to keep what is recorded of the reference.
    """

    style: list[Any]
    images: Sequence[tuple[str, int, Mapping[str, Any]]]
    is_aligned: bool
    batch_size: int
    bank_device: str | None


class Worker:
    """Draws with a model of its own, in a process of its own."""

    def __init__(
        self,
        model: str,
        options: Mapping[str, Any],
        threads: int | None = None,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        """Take note of the model. It is loaded by `start`, so that what goes wrong can be told.

        Args:
            model: The name or path of the model.
            options: The options of `load_model`.
            threads: The number of threads that PyTorch uses on the CPU. None leaves it to PyTorch.
            extras: What goes beside StyleAligned.
        """
        self._name = model
        self._options = options
        self._threads = threads
        self._extras = extras
        self._model: Any = None
        self._style: tuple[Any, Style] | None = None

    def start(self) -> dict[str, Any]:
        """Load the model.

        Returns:
            What images depend on of the model, and where the worker is.
        """
        import torch

        from style_aligned.models.checkpoints import load_model
        from style_aligned.sets.drawing import describe_drawer
        from style_aligned.sets.extras import add_extras

        if self._threads is not None:
            torch.set_num_threads(self._threads)
        self._model = load_model(self._name, **self._options)
        if self._extras:
            add_extras(self._model, self._extras)
        self._about = describe_drawer(self._model)
        return {
            "model": self._about,
            "device": str(self._model.device),
            "host": platform.node(),
            "process": os.getpid(),
        }

    def make_style(self, settings: Mapping[str, Any]) -> bytes:
        """Make a style from a prompt, all of its steps.

        Returns:
            Its file.
        """
        from style_aligned.sets.drawing import start_style

        return pack(start_style(self._model, settings).complete(self._model))

    def image_of(self, style: bytes) -> Image:
        """Return the image of a style's reference."""
        return unpack(style).image(self._model)

    def draw(self, task: Task) -> tuple[list[bytes], float]:
        """Draw images.

        Returns:
            Each of them as a PNG file, with its settings inside, and how many seconds they took.
        """
        from style_aligned.sets.drawing import draw, image_settings
        from style_aligned.sets.inputs import describe_inputs

        start = monotonic()
        style = self._take_style(task.style[0])
        settings = image_settings(style, self._about, is_aligned=task.is_aligned)
        samples = draw(
            self._model,
            style,
            [prompt for prompt, _, _ in task.images],
            [seed for _, seed, _ in task.images],
            inputs=[inputs for _, _, inputs in task.images],
            is_aligned=task.is_aligned,
            batch_size=task.batch_size,
            bank_device=task.bank_device,
        )
        files: list[bytes] = []
        for sample, (_, _, inputs) in zip(samples, task.images, strict=True):
            own = {**settings, **describe_inputs(inputs, style.size)}
            files.append(encode_png(sample.image, describe_image(sample.prompt, sample.seed, own)))
        return files, monotonic() - start

    def _take_style(self, reference: Any) -> Style:
        """Take a style out of the memory of the cluster, once for all of its tasks."""
        if self._style is None or self._style[0] != reference:
            content: Any = import_ray().get(reference)
            self._style = (reference, unpack(content))
        return self._style[1]


def pack(style: Style) -> bytes:
    """Return a style as the bytes of its file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "style.safetensors"
        style.save(path)
        return path.read_bytes()


def unpack(content: bytes) -> Style:
    """Return the style of a file's bytes."""
    from style_aligned.styles.style import Style

    with TemporaryDirectory() as folder:
        path = Path(folder) / "style.safetensors"
        path.write_bytes(content)
        return Style.load(path)
