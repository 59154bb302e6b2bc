"""The pool on a cluster of two CPUs."""

import collections
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from style_aligned.cluster.connect import ClusterError
from style_aligned.cluster.pool import Job, Pool
from tests.cluster.workers import Broken, Counter, Ending

pytestmark = pytest.mark.slow


class Workers:
    """Makes pools of two workers, and collects what they tell."""

    def __init__(self, ray: Any, folder: Path) -> None:
        self.ray = ray
        self.folder = folder
        self.told: list[str] = []
        self.pools: list[Pool] = []

    def __call__(self, kind: type = Counter, seconds: float = 0.0, **options: Any) -> Pool:
        arguments = (str(self.folder), seconds)
        self.pools.append(Pool(self.ray, kind, arguments, count=2, warn=self.told.append, **options))
        return self.pools[-1]


@pytest.fixture
def workers(ray: Any, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(ray, tmp_path)
    yield made
    for pool in made.pools:
        pool.close()


def jobs(count: int, method: str = "double", taken: list[int] | None = None) -> Iterator[Job[int]]:
    for number in range(count):
        if taken is not None:
            taken.append(number)
        yield Job(number, method, (number,))


def test_every_job_is_done_once_by_two_workers_with_few_on_their_way(workers: Workers) -> None:
    taken: list[int] = []
    pool = workers(seconds=0.02)
    results: dict[int, tuple[int, int]] = {}
    for number, result in pool.run(jobs(40, taken=taken)):
        assert number not in results
        results[number] = result
        assert len(taken) <= len(results) + 4  # two workers, two jobs each
    assert {number: double for number, (double, _) in results.items()} == {number: 2 * number for number in range(40)}
    assert min(collections.Counter(process for _, process in results.values()).values()) > 10
    assert len(list(workers.folder.iterdir())) == 40
    assert pool.call("double", 7)[0] == 14
    assert list(pool.run([])) == []
    assert workers.told == []


def test_a_killed_worker_is_replaced_and_its_jobs_are_done_by_others(workers: Workers) -> None:
    results: dict[int, int] = {}
    for number, (double, process) in workers(seconds=0.05).run(jobs(30)):
        assert number not in results
        results[number] = double
        if len(results) == 5:
            os.kill(process, signal.SIGKILL)
    assert results == {number: 2 * number for number in range(30)}
    assert workers.told == [
        "a worker is lost (its process has ended): another one is started, and what it was at is done again"
    ]


def test_a_job_that_ends_its_workers_is_not_tried_for_ever(workers: Workers) -> None:
    pool = workers()
    with pytest.raises(
        ClusterError, match=r"expected a worker to do its job, got 3 lost over it: its process has ended"
    ):
        list(pool.run(jobs(1, "end")))


def test_an_error_of_a_worker_is_raised_as_it_is(workers: Workers) -> None:
    pool = workers()
    with pytest.raises(ValueError, match="expected another number,\ngot 0") as error:
        list(pool.run(jobs(3, "refuse")))
    assert type(error.value) is ValueError
    assert pool.call("double", 3)[0] == 6


def test_workers_that_cannot_start_are_told_of_once(workers: Workers) -> None:
    with pytest.raises(ClusterError) as error:
        list(workers(Broken).run(jobs(3)))
    reason = "a worker cannot start: no such model: fox.safetensors"
    assert str(error.value) == f"expected a worker, got none that could be used: {reason}"
    assert workers.told == [reason]


def test_one_of_two_workers_is_enough(workers: Workers) -> None:
    pool = workers(Broken, seconds=0.01)
    for _ in range(1000):  # until the other one has tried
        assert sorted(number for number, _ in pool.run(jobs(20))) == list(range(20))
        if pool.size == 1:
            break
    assert pool.size == 1
    assert workers.told == ["a worker cannot start: no such model: fox.safetensors"]


def test_workers_that_end_at_once_are_not_started_for_ever(workers: Workers) -> None:
    with pytest.raises(ClusterError, match=r"got none that could be used: a worker is lost .*, for the third time"):
        list(workers(Ending).run(jobs(3)))
    assert len(workers.told) <= 5


def test_workers_are_checked(workers: Workers) -> None:
    def check(about: Any) -> None:
        raise ValueError(f"expected another process than {about}")

    with pytest.raises(ClusterError, match=r"a worker cannot be used: expected another process than \d+"):
        list(workers(check=check).run(jobs(1)))


def test_machines_without_gpus_are_refused(workers: Workers) -> None:
    with pytest.raises(ClusterError, match="expected a machine with 1 GPUs for a worker, got 0 on the largest of"):
        workers(gpus=1)


def test_workers_that_do_not_fit_are_told_of(workers: Workers) -> None:
    pool = workers(cpus=2)
    assert workers.told == ["the cluster has CPUs for 1 of 2 workers: the others wait for more"]
    assert sorted(number for number, _ in pool.run(jobs(5))) == list(range(5))
