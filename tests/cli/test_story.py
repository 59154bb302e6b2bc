"""One story from exploring to exporting; and the same set, however often its process is killed."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from PIL import Image

from style_aligned.cli import main
from style_aligned.files import read_texts
from style_aligned.sets.image_set import read_image_set
from tests.cli.conftest import SMALL, Run
from tests.sets.conftest import contents, pictures


def test_a_set_of_icons_from_looks_to_the_client(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def do(*arguments: str) -> None:
        code, _, error = run(*arguments)
        assert code == 0, error

    do("explore", "a sword, sticker", "--count", "3", *SMALL, "--output", "looks")
    do("generate", "looks/2", "a key", "a crown", "--suffix", ", sticker", "--output", "icons")
    icons = Path("icons")
    first = pictures(icons)
    do("add", "icons", "a gem", "a potion")
    do("reroll", "icons", "key")
    do("remove", "icons", "gem")
    do("rename", "icons", "crown", "kings-crown")
    do("sheet", "icons", "--title", "Client A", "--columns", "4", "--no-settings")
    do("export", "icons", "--to", "out", "--size", "32")
    after = pictures(icons)
    assert after.keys() == {
        "001-a-key.png", "kings-crown.png", "004-a-potion.png", "reference.png", "replaced/001-a-key-seed-2.png",
        "replaced/003-a-gem.png",
    }  # fmt: skip
    assert after["kings-crown.png"] == first["002-a-crown.png"]
    assert after["replaced/001-a-key-seed-2.png"] == first["001-a-key.png"]
    assert after["reference.png"] == first["reference.png"]
    assert (icons / "style.safetensors").read_bytes() == Path("looks/2.safetensors").read_bytes()
    assert contents(Path("out")).keys() == {"key.png", "kings-crown.png", "potion.png"}
    with Image.open("out/key.png") as image:
        assert image.size == (32, 32)
    prompts = {image.prompt: image.drawing.seed for image in read_image_set(icons).state.current}
    assert prompts == {"a key, sticker": 6, "a crown, sticker": 3, "a potion, sticker": 5}
    assert read_image_set(icons).state.sheet.title == "Client A"


COUNT = 6
KILLS = 20
ARGUMENTS = [
    "generate", "a fox, neon sign", "--prompts", "prompts.txt", "--steps", "1", "--size", "64", "--batch-size", "2",
    "--chunk-seconds", "0.1", "--compare", "--output", "set",
]  # fmt: skip
GENERATE = [sys.executable, "-m", "style_aligned", *ARGUMENTS]


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def generate_in(folder: Path) -> None:
    """Draw the set of a folder, in a process of its own, silently."""
    os.chdir(folder)
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    sys.exit(main(ARGUMENTS))


def described(folder: Path) -> list[tuple[int, str, int, str, str]]:
    """What a set that is drawn to its end says of its images, and which files it has."""
    images = read_image_set(folder).state.current
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    twins = {image.drawing.unaligned for image in images}
    own = {".lock", "set.json", "sheet.png", "reference.png", "style.safetensors"}
    assert files == own | twins | {image.drawing.file for image in images}
    return [(own.id, own.prompt, own.drawing.seed, own.drawing.file, own.drawing.unaligned) for own in images]


@pytest.mark.slow  # it kills 20 processes
def test_killed_at_any_moment_nothing_is_lost_or_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    processes = multiprocessing.get_context("forkserver")  # it has PyTorch already, which takes longer than drawing
    processes.set_forkserver_preload(["style_aligned.cli.run", "style_aligned.models.mini"])

    def start(folder: Path) -> BaseProcess:
        folder.mkdir(exist_ok=True)
        (folder / "prompts.txt").write_text("\n".join(f"a fox number {number}" for number in range(COUNT)))
        process = processes.Process(target=generate_in, args=(folder,))
        process.start()
        return process

    durations: list[float] = []  # of runs from nothing to the end
    for name in ("first", "whole"):  # the first one starts the server
        began = time.perf_counter()
        start(tmp_path / name).join()
        durations.append(time.perf_counter() - began)
    whole = described(tmp_path / "whole" / "set")
    assert len(whole) == COUNT

    moments = random.Random(0)
    kills = sets = 0
    kept: dict[str, bytes] = {}
    while kills < KILLS or kept:  # the last set comes to its end
        folder = tmp_path / f"killed-{sets}" / "set"
        began, is_new = time.perf_counter(), not folder.exists()
        process = start(folder.parent)
        process.join(timeout=moments.uniform(0, 0.8) * min(durations) if kills < KILLS else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        there = pictures(folder) if folder.exists() else {}
        assert {name: there.get(name) for name in kept} == kept  # nothing is lost, and nothing drawn again
        for name in there.keys() - kept.keys():
            with Image.open(folder / name) as image:
                image.load()
            assert read_texts(folder / name)["prompt"]
        if (folder / "set.json").exists():
            drawn = [image for image in read_image_set(folder).state.current if image.drawing.is_drawn]
            assert all((folder / image.drawing.file).is_file() for image in drawn)
        kept = there
        if process.exitcode == 0:
            durations += [time.perf_counter() - began] if is_new else []
            assert described(folder) == whole
            sets, kept = sets + 1, {}
    assert sets >= 1


@pytest.mark.slow  # it loads the model in another process
def test_two_writers_at_once(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\na cat\na dog\n")
    first = subprocess.Popen(
        GENERATE, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with first:
        while not (tmp_path / "set" / "set.json").exists():
            assert first.poll() is None
            time.sleep(0.05)
        first.send_signal(signal.SIGSTOP)  # it is at work for as long as the second one takes to get there
        second = subprocess.run(GENERATE, cwd=tmp_path, env=environment(), check=False, capture_output=True, text=True)
        first.send_signal(signal.SIGCONT)
        output, error = first.communicate()
    assert (second.returncode, second.stdout) == (2, "")
    message = "style-aligned: error: another run is at work in set: wait for it, or take another folder\n"
    assert second.stderr == message
    assert first.returncode == 0, error
    assert output.startswith("3 new images in set")
