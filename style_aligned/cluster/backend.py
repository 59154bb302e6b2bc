"""Drawing on the workers of a cluster, for the sets of this machine."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from PIL.Image import Image

from style_aligned.cluster.connect import ClusterError, connect
from style_aligned.cluster.pool import Job, Pool, Warn
from style_aligned.cluster.worker import Task, Worker, pack, unpack
from style_aligned.models.model import Model
from style_aligned.sets import drawing
from style_aligned.sets.backend import MAX_CHUNK, Backend, How, OnStep, Preview
from style_aligned.sets.records import SetImage
from style_aligned.styles.style import Style


class ClusterBackend(Backend, AbstractContextManager["ClusterBackend"]):
    """Draws on workers, each of which has loaded the model.

    The images of a set are dealt out in whole batches, and a worker records the reference once for those that it is
    given at a time. So they are those of one machine: to the last bit on equal hardware, as the same images share a
    batch.

    Attributes:
        seconds: How long the workers have drawn, all together.

    Example:
        ```py notest
        with ClusterBackend("sdxl", {"device": "cuda"}, workers=4, gpus_per_worker=1) as backend:
            model = load_model("sdxl", device="cpu", dtype=backend.dtype)
            Artist(image_set, model, backend=backend).draw_missing()
        ```
    """

    def __init__(
        self,
        model: str,
        options: Mapping[str, Any] | None = None,
        how: How | None = None,
        *,
        extras: Mapping[str, Any] | None = None,
        workers: int | None = None,
        address: str | None = None,
        gpus_per_worker: int | float | None = None,
        threads: int | None = 1,
        warn: Warn = lambda message: None,
        worker: type = Worker,
    ) -> None:
        """Initialize the ClusterBackend. Workers are started as it is entered, and stopped as it is left.

        Args:
            model: The name or path of the model, as the workers find it.
            options: The options of [`load_model`][style_aligned.load_model].
            how: How to draw.
            extras: What goes beside StyleAligned, as `style_aligned.sets.extras.add_extras` takes it.
            workers: The number of workers. None means as many as the cluster has room for.
            address: The address of a Ray cluster. None starts one on this machine, and stops it in the end.
            gpus_per_worker: The number of GPUs that a worker takes, such as 1, or 0.5 for two workers on each. None
                means 1, if the cluster has any and the device in `options` is none other.
            threads: The number of CPUs that a worker takes, and of threads that it computes with. None takes one, and
                leaves the threads to PyTorch.
            warn: Called with what people should know.
            worker: The class of the workers.
        """
        self.how = how or How()
        self._options = dict(options or {})
        self._name = model
        self._extras = dict(extras or {})
        self._workers = workers
        self._address = address
        self._gpus = gpus_per_worker
        self._threads = threads
        self._warn = warn
        self._class = worker
        self._stack = ExitStack()
        self._about: dict[str, Any] | None = None
        self._seconds: float | None = None
        self.seconds = 0.0

    def __enter__(self) -> "ClusterBackend":
        with ExitStack() as stack:
            threads = self._threads or 1
            cpus = None if self._workers is None else self._workers * threads
            self._ray = stack.enter_context(connect(self._address, cpus=cpus))
            gpus = self._count_gpus()
            has: Mapping[str, float] = self._ray.cluster_resources()
            fitting = has.get("GPU", 0) // gpus if gpus else has.get("CPU", 0) // threads
            self._pool = Pool(
                self._ray,
                self._class,
                (self._name, self._options, None if gpus else self._threads, self._extras),
                count=max(1, int(fitting)) if self._workers is None else self._workers,
                cpus=threads,
                gpus=gpus,
                warn=self._warn,
                check=self._check,
            )
            stack.callback(self._pool.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def check_model(self, model: Model) -> None:
        """Check that a model of this process is that of the workers.

        Raises:
            ClusterError: If it is another one.
        """
        assert self._about is not None
        if drawing.describe_drawer(model) != self._about["model"]:
            raise ClusterError(
                f"expected the same weights of {self._name} everywhere, got those here, and others on"
                f" {self._about['host']}"
            )

    def wait(self, count: int = 1) -> None:
        """Wait for workers that have loaded the model.

        Args:
            count: The number of workers.

        Raises:
            ClusterError: If there are not so many, and say why.
        """
        self._pool.wait(count)

    @property
    def dtype(self) -> str:
        """The precision of the model that the workers have loaded. The first of them is waited for."""
        self._pool.wait()
        assert self._about is not None
        return self._about["model"]["precision"]

    def start_style(self, settings: Mapping[str, Any]) -> Style:
        """Make a style from a prompt, all of its steps, on a worker."""
        return unpack(self._pool.call("make_style", dict(settings)))

    def complete_style(self, style: Style, on_step: OnStep) -> None:
        """Do the steps of a style that are left: `start_style` leaves none."""
        assert style.is_complete

    def image_of(self, style: Style) -> Image:
        """Return the image of a style's reference."""
        return self._pool.call("image_of", pack(style))

    def draw(
        self,
        style: Style,
        images: Sequence[SetImage],
        *,
        is_aligned: bool,
        on_step: OnStep,
        preview: Preview | None = None,
    ) -> Iterator[tuple[Sequence[SetImage], Iterator[Image | bytes]]]:
        """Draw images: a chunk is handed out when a worker has room for it, and given back when it is done."""
        stored = self._ray.put(pack(style))

        def jobs() -> Iterator[Job[Sequence[SetImage]]]:
            start = 0
            while start < len(images):
                chunk = images[start : start + self._chunk_size(len(images) - start)]
                drawn = [(image.prompt, image.drawing.seed, image.drawing.inputs) for image in chunk]
                task = Task([stored], drawn, is_aligned, self.how.batch_size, self.how.bank_device)
                yield Job(chunk, "draw", (task,))
                start += len(chunk)

        for chunk, (pictures, seconds) in self._pool.run(jobs()):
            self.seconds += seconds
            self._seconds = seconds / (len(chunk) + is_aligned)  # the reference takes as long as an image
            on_step(len(chunk) * style.num_inference_steps)
            yield chunk, iter(pictures)

    def _chunk_size(self, left: int) -> int:
        """Return the number of images to hand out: whole batches, a single one at first, and fewer towards the end."""
        if self._seconds is None:
            return self.how.batch_size
        in_time = self.how.chunk_seconds / max(self._seconds, 1e-6) // self.how.batch_size
        share = left / (2 * self._pool.size) // self.how.batch_size  # so that all workers are done at about one time
        return min(MAX_CHUNK, max(1, int(min(in_time, share))) * self.how.batch_size)

    def _count_gpus(self) -> int | float:
        device = str(self._options.get("device", "auto"))
        if ":" in device:
            raise ClusterError(f"expected a device without a number, as Ray gives workers their GPUs, got {device!r}")
        if self._gpus is not None:
            return self._gpus
        return 1 if device == "cuda" or (device == "auto" and self._ray.cluster_resources().get("GPU", 0)) else 0

    def _check(self, about: dict[str, Any]) -> None:
        """Check that a worker draws what the others draw."""
        if self._about is None:
            self._about = about
        elif about["model"] != self._about["model"]:
            raise ClusterError(
                f"expected the same weights of {self._name} everywhere, got those on {self._about['host']}, and others"
                f" on {about['host']}"
            )
