"""Workers on a Ray cluster: jobs are handed out as there is room for them, and again where a worker is lost."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Generic, TypeVar

from style_aligned.cluster.connect import ClusterError, one_line

Key = TypeVar("Key")

AHEAD = 2  # jobs of a worker at a time: the next one is there when one is done
MAX_LOSSES = 3  # of workers over one job, and of one worker before it has done another job
PATIENCE = 60.0  # seconds without any worker, after which people are told

WAITING = "no worker has started yet: the cluster may be busy, or models may take long to load"

Warn = Callable[[str], None]


@dataclass
class Job(Generic[Key]):
    """A call of a worker's method.

    Attributes:
        key: What its result belongs to.
        method: The name of the method.
        arguments: The arguments.
    """

    key: Key
    method: str
    arguments: tuple[Any, ...]
    losses: int = 0


@dataclass
class _Worker:
    actor: Any
    starting: Any
    losses: int = 0
    jobs: dict[Any, Job[Any]] = field(default_factory=dict[Any, Job[Any]])

    @property
    def is_ready(self) -> bool:
        return self.starting is None


class Pool:
    """A number of workers, each a process of its own on some machine of the cluster.

    A worker is an instance of a class with a method `start`, which readies it and says what it is. Workers that cannot
    be started are told of once and are done without. A worker that is lost, with its process or its machine, is
    replaced, and its jobs are done by others.
    """

    def __init__(
        self,
        ray: Any,
        worker: type,
        arguments: tuple[Any, ...] = (),
        *,
        count: int,
        cpus: int | float = 1,
        gpus: int | float = 0,
        warn: Warn = lambda message: None,
        check: Callable[[Any], None] = lambda about: None,
    ) -> None:
        """Start the workers.

        Args:
            ray: The module `ray`, connected to a cluster.
            worker: The class of the workers.
            arguments: What it is made with.
            count: The number of workers.
            cpus: The number of CPUs that each of them takes.
            gpus: The number of GPUs that each of them takes.
            warn: Called with what people should know.
            check: Called with what a worker says of itself. It raises a ValueError for one that is not to be used.

        Raises:
            ClusterError: If the cluster has not the resources for a single worker.
        """
        if count < 1:
            raise ClusterError(f"expected at least one worker, got {count}")
        self._ray = ray
        # a lost worker is replaced here, where its jobs are known, and not by Ray
        self._class = ray.remote(worker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)
        self._arguments = arguments
        self._warn = warn
        self._check = check
        self._told: set[str] = set()
        self._reason = ""
        self._check_resources(count, cpus=cpus, gpus=gpus)
        self._workers = [self._make() for _ in range(count)]

    @property
    def size(self) -> int:
        """The number of workers that are there, or are starting."""
        return len(self._workers)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of any worker, and return its result."""
        for _, result in self.run([Job(None, method, arguments)]):
            return result
        raise AssertionError("a job without a result")

    def run(self, jobs: Iterable[Job[Key]]) -> Iterator[tuple[Key, Any]]:
        """Have jobs done by the workers.

        Jobs are taken from the iterable when there is room for them: two for each worker are on their way at most.

        Args:
            jobs: The jobs.

        Yields:
            The key and the result of each job, as they are done.

        Raises:
            ClusterError: If no worker is left, or one job has cost three of them.
            Exception: What a worker has raised.
        """
        waiting: deque[Job[Any]] = deque()
        try:
            yield from self._run(waiting, iter(jobs))
        finally:
            for worker in self._workers:  # of a run that has ended early
                for ref in worker.jobs:
                    self._ray.cancel(ref)
                worker.jobs.clear()

    def wait(self, count: int = 1) -> None:
        """Wait for workers that have started.

        Args:
            count: The number of workers.

        Raises:
            ClusterError: If there are not so many.
        """
        while sum(worker.is_ready for worker in self._workers) < count:
            if len(self._workers) < count:
                raise ClusterError(f"expected a worker, got none that could be used: {self._reason}")
            starting = {worker.starting: worker for worker in self._workers if not worker.is_ready}
            done, _ = self._ray.wait([*starting], timeout=PATIENCE)
            for ref in done:
                self._take_start(starting[ref], ref)
            if not done:
                self._tell(WAITING)

    def close(self) -> None:
        """Stop the workers, whatever they are at."""
        for worker in self._workers:
            self._ray.kill(worker.actor)
        self._workers = []

    def _run(self, waiting: deque[Job[Any]], source: Iterator[Job[Any]]) -> Iterator[tuple[Any, Any]]:
        since = monotonic()
        while True:
            self._hand_out(waiting, source)
            running = {ref: worker for worker in self._workers for ref in worker.jobs}
            if not running and not waiting:
                return
            starting = {worker.starting: worker for worker in self._workers if not worker.is_ready}
            if not self._workers:
                raise ClusterError(f"expected a worker, got none that could be used: {self._reason}")
            if running:
                since = monotonic()
            elif monotonic() - since > PATIENCE:
                self._tell(WAITING)
            done, _ = self._ray.wait([*running, *starting], num_returns=1, timeout=PATIENCE / 6)
            for ref in done:
                if ref in starting:
                    self._take_start(starting[ref], ref)
                else:
                    yield from self._take_result(running[ref], ref, waiting)
            done.clear()  # or the last result would stay in the cluster's memory
            del running

    def _take_result(self, worker: _Worker, ref: Any, waiting: deque[Job[Any]]) -> Iterator[tuple[Any, Any]]:
        job = worker.jobs.pop(ref)
        try:
            result = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except self._ray.exceptions.RayError as error:
            waiting.extendleft(reversed(self._lose(worker, job, error)))
        else:
            worker.losses = 0
            yield job.key, result

    def _make(self, losses: int = 0) -> _Worker:
        actor = self._class.remote(*self._arguments)
        return _Worker(actor, actor.start.remote(), losses)

    def _hand_out(self, waiting: deque[Job[Any]], source: Iterator[Job[Any]]) -> None:
        """Give jobs to the workers that have room, those with the least first."""
        for ahead in range(AHEAD):
            for worker in self._workers:
                if not worker.is_ready or len(worker.jobs) > ahead:
                    continue
                job = waiting.popleft() if waiting else next(source, None)
                if job is None:
                    return
                worker.jobs[getattr(worker.actor, job.method).remote(*job.arguments)] = job
        if not waiting and not any(worker.is_ready for worker in self._workers):
            job = next(source, None)  # to know whether there is anything to wait for
            if job is not None:
                waiting.append(job)

    def _take_start(self, worker: _Worker, ref: Any) -> None:
        worker.starting = None
        try:
            self._check(self._ray.get(ref))
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            self._drop(worker, f"a worker cannot start: {one_line(cause)}")
        except self._ray.exceptions.RayError as error:
            self._lose(worker, None, error)
        except ValueError as error:
            self._drop(worker, f"a worker cannot be used: {one_line(error)}")

    def _drop(self, worker: _Worker, reason: str) -> None:
        self._reason = reason
        self._workers.remove(worker)
        self._ray.kill(worker.actor)
        if self._workers:  # else it is the error
            self._tell(reason)

    def _lose(self, worker: _Worker, job: Job[Any] | None, error: Exception) -> list[Job[Any]]:
        """Replace a worker that is lost, and return the jobs that it leaves behind."""
        left = [*([job] if job is not None else []), *worker.jobs.values()]
        for one in left:
            one.losses += 1
            if one.losses >= MAX_LOSSES:
                raise ClusterError(f"expected a worker to do its job, got {MAX_LOSSES} lost over it: {describe(error)}")
        worker.jobs.clear()
        self._ray.kill(worker.actor)  # it may be there still, behind a network that is not
        reason = f"a worker is lost ({describe(error)})"
        if worker.losses + 1 >= MAX_LOSSES:
            self._drop(worker, f"{reason}, for the third time in a row")
        else:
            self._workers[self._workers.index(worker)] = self._make(worker.losses + 1)
            self._warn(f"{reason}: another one is started, and what it was at is done again")
        return left

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._warn(message)

    def _check_resources(self, count: int, *, cpus: int | float, gpus: int | float) -> None:
        has: dict[str, float] = self._ray.cluster_resources()
        for name, wanted in (("GPU", gpus), ("CPU", cpus)):
            if not wanted:
                continue
            largest = max((node["Resources"].get(name, 0) for node in self._ray.nodes() if node["Alive"]), default=0)
            if largest < wanted:
                advice = ": without GPUs, use --device cpu" if name == "GPU" else ""
                raise ClusterError(
                    f"expected a machine with {wanted:g} {name}s for a worker, got {largest:g} on the largest of the"
                    f" cluster{advice}"
                )
            if (fitting := int(has.get(name, 0) // wanted)) < count:
                self._warn(f"the cluster has {name}s for {fitting} of {count} workers: the others wait for more")


def describe(error: Exception) -> str:
    """Put into a few words how a worker was lost."""
    text = one_line(error, 2000)
    for sign, words in (
        ("node has died", "its machine is gone"),
        ("due to memory pressure", "out of memory"),
        ("worker process has died", "its process has ended"),
        ("worker died unexpectedly", "its process has ended"),
    ):
        if sign in text:
            return words
    return one_line(error, 200)
