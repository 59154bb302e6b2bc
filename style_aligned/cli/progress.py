"""How far a command is: images, steps and the time that is left, where there is a terminal."""

from collections.abc import Generator
from contextlib import contextmanager

SPEED_PERIOD = 3600  # seconds; within rich's 30, a slow model does not make two steps, which it takes to tell a speed


class Progress:
    """How far a command is. Nothing is written if standard error is not a terminal."""

    def __init__(self, images: int = 0, steps: int = 0) -> None:
        """Initialize the Progress.

        Args:
            images: The number of images to come.
            steps: The number of steps that they take together.
        """
        from rich.console import Console
        from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),  # prompts have brackets
            BarColumn(),
            TextColumn("{task.fields[images]}", markup=False),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps", markup=False),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
            speed_estimate_period=SPEED_PERIOD,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1, images="")
        self._done = self._images = 0
        self.start(images, steps)

    @classmethod
    @contextmanager
    def show(cls, images: int = 0, steps: int = 0) -> Generator["Progress", None, None]:
        """Show it for as long as the context lasts."""
        progress = cls(images, steps)
        with progress._bar:
            yield progress

    def start(self, images: int, steps: int) -> None:
        """Start to count anew.

        Args:
            images: The number of images to come.
            steps: The number of steps that they take together.
        """
        self._done, self._images = 0, images
        shown = f"0/{images} images" if images else ""
        self._bar.reset(self._task, total=max(1, steps), images=shown)

    def describe(self, text: str) -> None:
        """Say what is being done."""
        self._bar.update(self._task, description=text)

    def step(self, count: int = 1) -> None:
        """Count steps that are done."""
        self._bar.advance(self._task, count)

    def image(self, file: str = "") -> None:
        """Count an image that is done."""
        self._done += 1
        self._bar.update(self._task, images=f"{self._done}/{self._images} images")

    def total(self, steps: int) -> None:
        """Correct the number of steps to come."""
        self._bar.update(self._task, total=max(1, steps))
