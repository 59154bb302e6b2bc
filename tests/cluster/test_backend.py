"""Sets drawn by two workers on two CPUs, with the embedded model."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from style_aligned import load_model
from style_aligned.cluster.backend import ClusterBackend
from style_aligned.cluster.connect import ClusterError
from style_aligned.files import open_image
from style_aligned.models.model import Model
from style_aligned.sets.backend import How
from style_aligned.sets.image_set import read_image_set
from tests.cluster.drawing import PROMPTS, draw_set

pytestmark = pytest.mark.slow

TWO = How(batch_size=2, chunk_seconds=0.0)
CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers
    yield load_model(device="cpu")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The set as one process draws it, with unaligned images."""
    folder = tmp_path_factory.mktemp("alone")
    draw_set(folder, model, How(batch_size=2, chunk_seconds=0.0, compare=True))
    return pngs(folder)


def pngs(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def expect_all_images(folder: Path) -> None:
    """Expect each image to be there once, and recorded."""
    image_set = read_image_set(folder)
    names = sorted(path.name for path in folder.glob("*.png"))
    drawn = [image.drawing.file for image in image_set.state.current if image.drawing.is_drawn]
    assert sorted([*drawn, "reference.png", "sheet.png"]) == names
    assert [image.prompt for image in image_set.state.current] == PROMPTS


def largest_difference(folder: Path, expected: dict[str, bytes], tmp_path: Path) -> int:
    """The largest difference of a pixel's value between the images of a folder and others."""
    differences: list[int] = []
    for path in folder.glob("0*.png"):
        (tmp_path / "expected.png").write_bytes(expected[path.name])
        one, other = (np.asarray(open_image(file)).astype(int) for file in (path, tmp_path / "expected.png"))
        differences.append(int(np.abs(one - other).max()))
    return max(differences)


def test_images_are_those_of_one_process_bit_for_bit(
    ray: Any, model: Model, alone: dict[str, bytes], tmp_path: Path
) -> None:
    how = How(batch_size=2, chunk_seconds=0.0, compare=True)
    with ClusterBackend("mini", CPU, how, workers=2) as backend:
        draw_set(tmp_path, model, how, backend=backend)
    assert len(alone) == 2 + 2 * len(PROMPTS)
    assert pngs(tmp_path) == alone


def test_a_worker_killed_by_its_id_costs_nothing(
    ray: Any, model: Model, alone: dict[str, bytes], tmp_path: Path
) -> None:
    told: list[str] = []
    processes: list[int] = []

    class Noted(ClusterBackend):
        def _check(self, about: dict[str, Any]) -> None:
            processes.append(about["process"])
            super()._check(about)

    def kill(written: int) -> None:
        if written == 4:
            os.kill(processes[0], signal.SIGKILL)

    with Noted("mini", CPU, TWO, workers=2, warn=told.append) as backend:
        draw_set(tmp_path, model, TWO, backend=backend, on_image=kill)
    expect_all_images(tmp_path)
    images = pngs(tmp_path)
    del images["sheet.png"]  # it shows no unaligned images
    assert images.items() <= alone.items()
    assert [line.partition(":")[0] for line in told] == ["a worker is lost (its process has ended)"]


def test_a_driver_that_is_killed_goes_on(alone: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    command = [sys.executable, "-m", "tests.cluster.drawing", str(folder)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        for written, _ in enumerate(driver.stdout, start=1):
            if written == 4:
                driver.kill()
                break
    there = {path: path.stat().st_mtime_ns for path in folder.glob("0*.png")}
    assert 3 <= len(there) < len(PROMPTS)
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) <= len(PROMPTS) - len(there)
    expect_all_images(folder)
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert largest_difference(folder, alone, tmp_path) <= 2  # other images share a batch then


def test_workers_that_cannot_load_the_model_say_so_once(ray: Any, tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "no-model.safetensors"
    with (
        pytest.raises(
            ClusterError, match=f"expected a worker, got none that could be used: a worker cannot start: .*{path}"
        ),
        ClusterBackend(str(path), CPU, workers=2, warn=told.append) as backend,
    ):
        assert backend.dtype
    assert len(told) == 1
    assert str(path) in told[0]


def test_workers_with_other_weights_are_not_used(ray: Any, tmp_path: Path) -> None:
    told: list[str] = []
    backend = ClusterBackend("mini", CPU, workers=2, warn=told.append)
    about = {"model": {"fingerprint": "one"}, "host": "a", "device": "cpu", "process": 1}
    backend._check(about)  # pyright: ignore[reportPrivateUsage]
    backend._check({**about, "host": "b"})  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(
        ClusterError, match="expected the same weights of mini everywhere, got those on a, and others on b"
    ):
        backend._check({**about, "model": {"fingerprint": "two"}, "host": "b"})  # pyright: ignore[reportPrivateUsage]
