"""What is drawn for the page: one job at a time, in the order in which people have asked."""

import io
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from PIL.Image import Image

from style_aligned.sets.records import BusyError
from style_aligned.sets.work import Report
from style_aligned.web.errors import describe_error

PATIENCE = 0.5  # seconds, until a set is looked at again in which another program is at work
PREVIEW = 192  # pixels
PREVIEW_SECONDS = 1.0  # from one preview to the next, at least
PREVIEW_PART = 12  # and so many times what a preview takes
KEPT = 100  # jobs that are over, of which the page tells how they have ended


class State(str, Enum):
    """How far a job is."""

    waiting = "waiting"
    drawing = "drawing"
    done = "done"
    failed = "failed"
    cancelled = "cancelled"


class Cancelled(BaseException):
    """Somebody has cancelled the job. No handler of errors takes it for one."""


@dataclass(eq=False)
class Job:
    """Something to draw.

    Attributes:
        folder: The name of the set, or of the folder of candidates, that it draws in.
        what: What it does, such as `drawing 4 images`.
        run: Does it.
        state: How far it is.
        message: Why it has failed.
        notes: What people should know, such as words that the model does not know.
        images: The number of images to draw. 0 as long as it is not known.
        images_done: The number of those that are on the disk.
        steps: The number of all their steps.
        steps_done: The number of those that are done.
        previews: Images that are not done yet, as JPEG files, by the names of their files.
        version: Counts up with each change.
    """

    folder: str
    what: str
    run: Callable[["Job"], None]
    state: State = State.waiting
    message: str = ""
    notes: list[str] = field(default_factory=list[str])
    images: int = 0
    images_done: int = 0
    steps: int = 0
    steps_done: int = 0
    previews: dict[str, bytes] = field(default_factory=dict[str, bytes])
    version: int = 0
    _began: float = 0.0
    _next_preview: float = 0.0
    _is_cancelled: threading.Event = field(default_factory=threading.Event)
    _is_over: threading.Event = field(default_factory=threading.Event)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._is_over.is_set()

    @property
    def seconds_left(self) -> float | None:
        """The time that it will take, if that can be told yet."""
        if not self.steps_done or self.state != State.drawing:
            return None
        return (time.monotonic() - self._began) / self.steps_done * max(0, self.steps - self.steps_done)

    def report(self) -> Report:
        """Return what tells the job how far the work is, and stops the work if it was cancelled."""
        return Report(start=self._start, step=self._step, image=self._image, warn=self._warn, preview=self._preview)

    def check_cancelled(self) -> bool:
        """Stop the work, if the job was cancelled."""
        if self._is_cancelled.is_set():
            raise Cancelled
        return False

    def wait(self, timeout: int | float | None = None) -> bool:
        """Wait until it has ended. Return whether it has."""
        return self._is_over.wait(timeout)

    def _start(self, images: int, steps: int) -> None:
        self.check_cancelled()
        self.images, self.steps, self._began = images, steps, time.monotonic()
        self.version += 1

    def _step(self, count: int) -> None:
        self.steps_done += count
        self.version += 1
        self.check_cancelled()

    def _image(self, file: str) -> None:
        self.images_done += 1
        self.previews.pop(file, None)
        self.version += 1
        self.check_cancelled()

    def _warn(self, message: str) -> None:
        self.notes.append(message)
        self.version += 1

    def _preview(self, files: Sequence[str], decode: Callable[[int], Image]) -> None:
        """Keep images as they are so far, in a small part of the time."""
        began = time.monotonic()
        if began < self._next_preview:
            return
        for index, file in enumerate(files):
            image = decode(index)
            image.thumbnail((PREVIEW, PREVIEW))
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=80)
            self.previews[file] = buffer.getvalue()
        ended = time.monotonic()
        self._next_preview = ended + max(PREVIEW_SECONDS, (ended - began) * PREVIEW_PART)
        self.version += 1

    def _end(self, state: State, message: str = "") -> None:
        self.state, self.message = state, message
        self.previews.clear()
        self.version += 1
        self._is_over.set()


class Jobs:
    """The jobs, and the thread that does one after the other."""

    def __init__(self) -> None:
        """Start the thread."""
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="drawing", daemon=True)
        self._thread.start()

    def submit(self, folder: str, what: str, run: Callable[[Job], None]) -> Job:
        """Have something drawn, after everything that others have asked for before."""
        job = Job(folder, what, run)
        with self._changed:
            over = [other for other in self._jobs if other.is_over]
            for other in [*over[:-KEPT], *(other for other in over if other.folder == folder)]:
                if other in self._jobs:
                    self._jobs.remove(other)
            self._jobs.append(job)
            self._changed.notify_all()
        return job

    def of(self, folder: str) -> Job | None:
        """Return the job of a folder: the one that is drawn, else the next one, else the one that has ended last."""
        with self._changed:
            jobs = [job for job in self._jobs if job.folder == folder]
        return next((job for job in jobs if not job.is_over), jobs[-1] if jobs else None)

    def ahead(self, job: Job) -> int:
        """Return the number of jobs that come before one."""
        with self._changed:
            active = [other for other in self._jobs if not other.is_over]
        return active.index(job) if job in active else 0

    def cancel(self, folder: str) -> None:
        """Cancel what is drawn or waits in a folder. What is on the disk stays."""
        with self._changed:
            for job in self._jobs:
                if job.folder == folder and not job.is_over:
                    job._is_cancelled.set()  # pyright: ignore[reportPrivateUsage]
                    if job.state == State.waiting:
                        job._end(State.cancelled)  # pyright: ignore[reportPrivateUsage]
                    job.version += 1

    def close(self) -> None:
        """Cancel everything, and wait for the thread."""
        with self._changed:
            self._is_closed = True
            folders = {job.folder for job in self._jobs}
            self._changed.notify_all()
        for folder in folders:
            self.cancel(folder)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.run(job)
            except Cancelled:
                job._end(State.cancelled)  # pyright: ignore[reportPrivateUsage]
            except BusyError as error:
                self._postpone(job, str(error))
            except BaseException as error:
                job._end(State.failed, describe_error(error))  # pyright: ignore[reportPrivateUsage]
            else:
                job._end(State.done)  # pyright: ignore[reportPrivateUsage]

    def _postpone(self, job: Job, reason: str) -> None:
        """Let the others go first, while another program is at work in the job's set."""
        with self._changed:
            self._jobs.remove(job)
            self._jobs.append(job)
            job.state, job.message = State.waiting, reason
            job.version += 1
            if not any(other.state == State.waiting for other in self._jobs if other is not job):
                self._changed.wait(PATIENCE)

    def _next(self) -> Job | None:
        with self._changed:
            while True:
                if self._is_closed:
                    return None
                for job in self._jobs:
                    if job.state == State.waiting:
                        job.state, job.message = State.drawing, ""
                        job.version += 1
                        return job
                self._changed.wait()
