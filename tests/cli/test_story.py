"""One story from exploring to exporting; and the same set, however often its process is killed."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

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


COUNT = 8
GENERATE = [
    sys.executable, "-m", "style_aligned", "generate", "a fox, neon sign", "--prompts", "prompts.txt", "--steps", "4",
    "--size", "64", "--batch-size", "2", "--chunk-seconds", "1", "--compare", "--output", "set",
]  # fmt: skip


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow  # it starts 20 processes
def test_killed_at_any_moment_nothing_is_lost_or_half_written(tmp_path: Path) -> None:
    prompts = [f"a fox number {number}" for number in range(COUNT)]
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "prompts.txt").write_text("\n".join(prompts))
    start = time.perf_counter()
    subprocess.run(GENERATE, cwd=tmp_path / "whole", env=environment(), check=True, capture_output=True)
    duration = time.perf_counter() - start
    moments = random.Random(0)
    folder = tmp_path / "killed" / "set"
    kept: dict[str, bytes] = {}
    for _ in range(20):
        with subprocess.Popen(
            GENERATE, cwd=tmp_path / "killed", env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=moments.uniform(0.3, 1.1) * duration)
            process.send_signal(signal.SIGKILL)
        if not folder.exists():
            continue
        there = pictures(folder)
        assert {name: there.get(name) for name in kept} == kept  # nothing is lost, and nothing drawn again
        for name in there:
            with Image.open(folder / name) as image:
                image.load()
            assert read_texts(folder / name)["prompt"]
        if (folder / "set.json").exists():
            drawn = [image for image in read_image_set(folder).state.current if image.drawing.is_drawn]
            assert all((folder / image.drawing.file).is_file() for image in drawn)
        kept = there
    subprocess.run(GENERATE, cwd=tmp_path / "killed", env=environment(), check=True, capture_output=True)
    whole, resumed = (read_image_set(tmp_path / name / "set") for name in ("whole", "killed"))
    assert [(image.id, image.prompt, image.drawing.seed, image.drawing.file) for image in resumed.state.current] == [
        (image.id, image.prompt, image.drawing.seed, image.drawing.file) for image in whole.state.current
    ]
    assert pictures(folder).keys() == pictures(tmp_path / "whole" / "set").keys()
    assert not [path for path in folder.rglob("*") if path.suffix in (".part", ".journal")]
    again = subprocess.run(
        GENERATE, cwd=tmp_path / "killed", env=environment(), check=True, capture_output=True, text=True
    )
    assert again.stdout.startswith(f"0 new images in set ({COUNT} were there already)")


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
