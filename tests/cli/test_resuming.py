"""What was interrupted, killed, cut off or damaged is finished by the same command."""

import errno
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from style_aligned.cli import drawing
from style_aligned.models.mini import Mini
from style_aligned.sampling.generation import Sample
from tests.cli.conftest import FOX, SMALL, Run, contents, error_lines

INTERRUPTED = "style-aligned: interrupted: what was finished is kept, and the same command goes on from there"


def prompts_file(folder: Path, count: int = 5) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "a cat {number}"}}\n' for number in range(count)))
    return path


@contextmanager
def interruption(survivors: int) -> Generator[list[str], None, None]:
    """Interrupt what is run before a file gets its name, once some have theirs. Gives the names, that one's last."""
    names: list[str] = []

    def replace(path: Path, target: Path) -> None:
        names.append(target.name)
        if len(names) > survivors:
            raise KeyboardInterrupt
        path.rename(target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        yield names


def assert_goes_on(
    run: Run, command: Sequence[str | Path], folder: Path, whole: dict[str, bytes], *interruptions: tuple[int, str]
) -> None:
    """Assert that a command, interrupted again and again, keeps what is there and makes the rest in the end.

    Args:
        run: What runs the command.
        command: The command, but for its folder.
        folder: The folder.
        whole: What it makes without interruptions.
        interruptions: How many files are there by then, and the name of the one that is not any more.
    """
    kept, stamps = dict[str, bytes](), dict[str, int]()
    for survivors, at in (*interruptions, (len(whole), None)):
        with interruption(survivors - len(kept)) as names:
            code, output, error = run(*command, "--output", folder)
        if at is not None:
            assert names[-1] == at
            assert (code, output) == (130, "")
            assert error.splitlines()[-1] == INTERRUPTED
        else:
            assert code == 0, error
        assert stamps == {name: (folder / name).stat().st_mtime_ns for name in kept}
        kept = contents(folder)
        assert len(kept) == survivors
        assert kept.items() <= whole.items()
        stamps = {name: (folder / name).stat().st_mtime_ns for name in kept}


def test_an_interruption_changes_nothing(run: Run, tmp_path: Path) -> None:
    command = ["generate", *FOX, "--prompts", prompts_file(tmp_path), "--compare", "--batch-size", "2"]
    assert run(*command, "--output", tmp_path / "whole")[0] == 0
    assert_goes_on(
        run,
        command,
        tmp_path / "interrupted",
        contents(tmp_path / "whole"),
        (0, "style.safetensors"),
        (1, "reference.png"),
        (2, "000-a-cat-0.png"),
        (5, "003-a-cat-3.png"),
        (9, "002-a-cat-2.png"),  # unaligned
        (12, "sheet.png"),
    )


@pytest.mark.parametrize(
    ("sources", "interruptions"),
    [
        (["--style", "fox.safetensors"], [(0, "reference.png"), (2, "001-a-dog.png")]),
        (
            ["--reference", "a fox, neon sign", "--reference", "a dog, ink", *SMALL],
            [(5, "style.safetensors"), (6, "reference.png"), (8, "001-a-dog.png")],
        ),
        pytest.param(
            ["--reference", "a dog, ink", "--style", "fox.safetensors", *SMALL],
            [(3, "001-a-dog.png"), (5, "reference.png"), (7, "001-a-dog.png")],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["style file", "references", "both"],
)
def test_an_interruption_of_other_sets_changes_nothing(
    run: Run, tmp_path: Path, sources: list[str], interruptions: list[tuple[int, str]]
) -> None:
    file = tmp_path / "fox.safetensors"
    if "--style" in sources:
        assert run("style", "make", *FOX, "--output", file)[0] == 0
    prompts = ["--prompt", "a cat", "--prompt", "a dog", "--prompt", "a rocket", "--batch-size", "2"]
    command = ["generate", *(str(file) if name == file.name else name for name in sources), *prompts]
    assert run(*command, "--output", tmp_path / "whole")[0] == 0
    assert_goes_on(run, command, tmp_path / "interrupted", contents(tmp_path / "whole"), *interruptions)


def test_an_interruption_between_chunks_changes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["generate", *FOX, "--prompts", prompts_file(tmp_path, count=10), "--batch-size", "2"]
    assert run(*command, "--output", tmp_path / "whole")[0] == 0

    monkeypatch.setattr(drawing, "CHUNK", 4)
    chunks: list[int] = []
    generate = drawing.generate

    def spy(*arguments: Any, chunk_size: int, **options: Any) -> Iterator[Sample]:
        chunks.append(chunk_size)
        return generate(*arguments, chunk_size=chunk_size, **options)

    monkeypatch.setattr(drawing, "generate", spy)
    assert_goes_on(
        run,
        command,
        tmp_path / "interrupted",
        contents(tmp_path / "whole"),
        (0, "style.safetensors"),  # before the second chunk
        (6, "004-a-cat-4.png"),  # after the first one
        (9, "007-a-cat-7.png"),  # within a micro-batch
    )
    assert chunks == [4] * 4


START = """
import os, signal, sys
from pathlib import Path
import torch
from refiners.fluxion import layers as fl
from style_aligned.cli import drawing, library, main
from style_aligned.models.mini import Mini, MiniAutoencoder, MiniDoubleTextEncoder, MiniUNet

torch.manual_seed(0)
words = sys.argv.pop(1).split()
model = Mini(unet=MiniUNet(), lda=MiniAutoencoder(), clip_text_encoder=MiniDoubleTextEncoder(words))
library.load_model = lambda name, device, dtype: model
"""
KILL = """
replace = Path.replace
def replace_or_die(path, target):
    if Path(target).name.startswith("003"):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)
Path.replace = replace_or_die
sys.exit(main())
"""
INTERRUPT = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
drawing.CHUNK = 2
left = int(sys.argv.pop(1))
def interrupt(layer, arguments):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGINT)
list(model.unet.layers(fl.Conv2d))[-1].register_forward_pre_hook(interrupt)
sys.exit(main())
"""


def run_process(script: str, model: Mini, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, with the vocabulary of a model as its first argument."""
    words = " ".join(model.clip_text_encoder.tokenizer.vocabulary)
    command = [sys.executable, "-c", script, words, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_kill_changes_nothing(run: Run, random_mini: Mini, tmp_path: Path) -> None:
    command = ["generate", *FOX, "--prompts", str(prompts_file(tmp_path)), "--batch-size", "2", "--output"]
    assert run(*command, tmp_path / "whole")[0] == 0
    folder = tmp_path / "killed"
    done = run_process(START + KILL, random_mini, *command, str(folder))
    assert done.returncode == -9, done.stderr
    assert {"000-a-cat-0.png", "002-a-cat-2.png", "003-a-cat-3.png.part"} < set(contents(folder))
    assert run(*command, folder)[0] == 0
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_signal_within_a_step_changes_nothing(run: Run, random_mini: Mini, tmp_path: Path) -> None:
    command = ["generate", *FOX, "--prompts", str(prompts_file(tmp_path)), "--batch-size", "2", "--output"]
    assert run(*command, tmp_path / "whole")[0] == 0
    folder = tmp_path / "interrupted"
    for passes, kept in (
        (3, set[str]()),  # the reference, at its second step
        (6, {"style.safetensors", "reference.png", "000-a-cat-0.png", "001-a-cat-1.png"}),  # images of the second chunk
    ):
        done = run_process(START + INTERRUPT, random_mini, str(passes), *command, str(folder))
        assert (done.returncode, done.stdout) == (130, ""), done.stderr
        assert error_lines(done.stderr) == [INTERRUPTED]
        assert set(contents(folder)) == kept
    assert run(*command, folder)[0] == 0
    assert contents(folder) == contents(tmp_path / "whole")


def test_full_disk(run: Run, tmp_path: Path) -> None:
    command = ["generate", *FOX, "--prompt", "a cat", "--prompt", "a dog", "--output"]
    assert run(*command, tmp_path / "whole")[0] == 0
    folder, write = tmp_path / "full", Path.write_bytes
    for name, kept in (
        ("style.safetensors", set[str]()),
        ("001-a-dog.png", {"000-a-cat.png", "reference.png", "style.safetensors"}),
        ("sheet.png", {"000-a-cat.png", "001-a-dog.png", "reference.png", "style.safetensors"}),
    ):

        def write_bytes(path: Path, content: bytes, name: str = name) -> int:
            if path.name.startswith(name):
                write(path, content[:100])
                raise OSError(errno.ENOSPC, "No space left on device")  # as from an open file: without its name
            return write(path, content)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "write_bytes", write_bytes)
            code, output, error = run(*command, folder)
        assert (code, output) == (2, "")
        assert error_lines(error) == [
            f"style-aligned: error: {folder / name}: no space left on device; what was finished is kept"
        ]
        assert set(contents(folder)) == kept
    assert run(*command, folder)[0] == 0
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_style_file_that_is_gone_is_written_again(run: Run, tmp_path: Path) -> None:
    command = ["generate", *FOX, "--prompt", "a cat", "--prompt", "a dog", "--compare", "--output", tmp_path]
    assert run(*command)[0] == 0
    before = contents(tmp_path)
    images = [path for path in tmp_path.rglob("*.png") if path.name != "sheet.png"]
    stamps = {path: path.stat().st_mtime_ns for path in images}
    assert len(stamps) == 5
    (tmp_path / "style.safetensors").unlink()
    code, output, error = run(*command)
    assert code == 0, error
    assert output.startswith("0 new images in ")
    assert contents(tmp_path) == before
    assert stamps == {path: path.stat().st_mtime_ns for path in images}

    # those that are gone too follow it as the others do
    (tmp_path / "style.safetensors").unlink()
    (tmp_path / "001-a-dog.png").unlink()
    (tmp_path / "reference.png").unlink()
    assert run(*command)[1].startswith("1 new image in ")
    assert contents(tmp_path) == before
    assert {path for path in images if path.stat().st_mtime_ns != stamps[path]} == {
        tmp_path / "001-a-dog.png",
        tmp_path / "reference.png",
    }


def test_cut_off_images_are_made_again(run: Run, tmp_path: Path) -> None:
    command = ["generate", *FOX, "--prompt", "a cat", "--prompt", "a dog", "--output", tmp_path]
    run(*command)
    before = contents(tmp_path)
    (tmp_path / "000-a-cat.png").write_bytes(before["000-a-cat.png"][:200])
    (tmp_path / "001-a-dog.png").write_bytes(b"")
    assert run(*command)[0] == 0
    assert contents(tmp_path) == before


def damage(path: Path) -> None:
    """Zero bytes in the middle of an image's pixels, as a failing disk does."""
    content = path.read_bytes()
    start = content.index(b"IDAT") + 100
    path.write_bytes(content[:start] + bytes(1000) + content[start + 1000 :])


def test_damaged_images_are_made_again(run: Run, tmp_path: Path) -> None:
    command = ["generate", *FOX, "--prompt", "a cat", "--prompt", "a dog", "--output", tmp_path]
    run(*command)
    before = contents(tmp_path)
    for force in ([], ["--force"]):
        damage(tmp_path / "001-a-dog.png")
        damage(tmp_path / "reference.png")
        code, output, error = run(*command, *force)
        assert code == 0, error
        assert output.startswith("1 new image in")
        assert contents(tmp_path) == before


def test_what_an_earlier_run_has_left_over_is_told(run: Run, tmp_path: Path) -> None:
    folder, others = tmp_path / "set", tmp_path / "set" / "mine.png"
    code, _, error = run("generate", *FOX, "--prompt", "a cat", "--prompt", "a dog", "--output", folder)
    assert code == 0
    assert "earlier run" not in error
    Image.new("RGB", (4, 4)).save(others)
    code, _, error = run("generate", *FOX, "--prompt", "a cat", "--prompt", "a car", "--output", folder)
    assert code == 0
    assert error.endswith(
        "style-aligned: warning: 1 image of an earlier run is still there, such as"
        f" {folder / '001-a-dog.png'}: not on the sheet\n"
    )
    assert others.exists()


def test_what_other_options_have_left_over_is_told(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    command = ["generate", *FOX, "--prompt", "a cat", "--output", folder]
    assert run(*command, "--compare")[0] == 0
    assert f"1 image of an earlier run is still there, such as {folder / 'unaligned'}" in run(*command)[2]
    _, _, error = run(*command, "--reference", "a dog", "--force")
    assert f"3 images of earlier runs are still there, such as {folder / '000-a-cat.png'}" in error


@pytest.mark.parametrize("content", [b"", bytes(5000)], ids=["empty", "zeros"])
def test_a_style_that_a_loss_of_power_has_left(run: Run, tmp_path: Path, content: bytes) -> None:
    command = ["generate", *FOX, "--prompt", "a cat", "--output", tmp_path]
    assert run(*command)[0] == 0
    whole = contents(tmp_path)
    (tmp_path / "style.safetensors").write_bytes(content)
    assert run(*command)[0] == 0
    assert contents(tmp_path) == whole
