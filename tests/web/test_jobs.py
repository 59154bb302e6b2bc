"""Jobs: one after the other, cancelled by whoever wants to, with errors in one line."""

import threading
from collections.abc import Iterator

import pytest

from style_aligned.sets.records import BusyError
from style_aligned.web.jobs import Job, Jobs, State
from tests.web.conftest import until


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    jobs = Jobs()
    yield jobs
    jobs.close()


def test_jobs_are_done_in_their_order(jobs: Jobs) -> None:
    gate = threading.Event()
    done: list[str] = []
    first = jobs.submit("a", "", lambda _: (gate.wait(), done.append("first"))[1])
    second = jobs.submit("b", "", lambda _: done.append("second"))
    until(lambda: first.state == State.drawing)
    assert second.state == State.waiting
    assert (jobs.ahead(first), jobs.ahead(second)) == (0, 1)
    gate.set()
    assert second.wait(10)
    assert done == ["first", "second"]
    assert jobs.of("a") is first
    assert first.state == State.done


def test_cancelling_stops_at_the_next_step_and_leaves_others_alone(jobs: Jobs) -> None:
    started = threading.Event()

    def work(job: Job) -> None:
        report = job.report()
        report.start(2, 1_000_000)
        while True:
            report.step(1)
            started.set()

    first, waiting = jobs.submit("a", "", work), jobs.submit("a", "", work)
    other = jobs.submit("b", "", lambda _: None)
    assert started.wait(10)
    assert first.seconds_left is not None
    jobs.cancel("a")
    assert first.wait(10)
    assert other.wait(10)
    assert (first.state, waiting.state, other.state) == (State.cancelled, State.cancelled, State.done)


def test_errors_are_told_in_one_line(jobs: Jobs) -> None:
    def fail(error: Exception) -> str:
        def run(_: Job) -> None:
            raise error

        job = jobs.submit("a", "", run)
        assert job.wait(10)
        assert job.state == State.failed
        return job.message

    assert fail(ValueError("expected this,\n  got that")) == "expected this, got that"
    assert fail(OSError(28, "No space left on device", "fox/1.png")) == "fox/1.png: no space left on device"
    assert fail(KeyError("x")) == "KeyError: 'x'"


def test_a_set_that_another_program_has_lets_others_go_first(jobs: Jobs) -> None:
    is_free = threading.Event()

    def run(_: Job) -> None:
        if not is_free.is_set():
            raise BusyError("another run is at work")

    busy = jobs.submit("a", "", run)
    other = jobs.submit("b", "", lambda _: None)
    assert other.wait(10)
    assert busy.state != State.done
    is_free.set()
    assert busy.wait(10)
    assert busy.state == State.done
