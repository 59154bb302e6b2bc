"""What was interrupted, killed, cut off or damaged is finished by the same command."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from style_aligned.mini import Mini
from tests.cli.conftest import FOX, Run, contents


def prompts_file(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "a cat {number}"}}\n' for number in range(5)))
    return path


def test_an_interruption_changes_nothing(run: Run, tmp_path: Path) -> None:
    command = ["generate", *FOX, "--prompts", prompts_file(tmp_path), "--compare", "--batch-size", "2", "--output"]
    assert run(*command, tmp_path / "whole")[0] == 0

    for survivors in (2, 5, 9):
        count = 0

        def replace(path: Path, target: Path, survivors: int = survivors) -> None:
            nonlocal count
            count += 1
            if count > survivors:
                raise KeyboardInterrupt
            path.rename(target)

        folder = tmp_path / f"interrupted-{survivors}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            code, output, error = run(*command, folder)
        assert (code, output) == (130, "")
        assert error.splitlines()[-1].startswith("style-aligned: interrupted: what was finished is kept")
        kept = contents(folder)
        assert len(kept) == survivors
        stamps = {name: (folder / name).stat().st_mtime_ns for name in kept}
        assert run(*command, folder)[0] == 0
        assert contents(folder) == contents(tmp_path / "whole")
        assert stamps == {name: (folder / name).stat().st_mtime_ns for name in kept}


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from style_aligned.cli import library, main
from style_aligned.mini import Mini, MiniAutoencoder, MiniDoubleTextEncoder, MiniUNet

torch.manual_seed(0)
words = sys.argv.pop(1).split()
model = Mini(unet=MiniUNet(), lda=MiniAutoencoder(), clip_text_encoder=MiniDoubleTextEncoder(words))
library.load_model = lambda name, device, dtype: model
replace = Path.replace
def replace_or_die(path, target):
    if Path(target).name.startswith("003"):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)
Path.replace = replace_or_die
sys.exit(main())
"""


def test_a_kill_changes_nothing(run: Run, random_mini: Mini, tmp_path: Path) -> None:
    command = ["generate", *FOX, "--prompts", str(prompts_file(tmp_path)), "--batch-size", "2", "--output"]
    assert run(*command, tmp_path / "whole")[0] == 0
    words = " ".join(random_mini.clip_text_encoder.tokenizer.vocabulary)
    folder = tmp_path / "killed"
    arguments = [sys.executable, "-c", KILLED, words, *command, str(folder)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert {"000-a-cat-0.png", "002-a-cat-2.png", "003-a-cat-3.png.part"} < set(contents(folder))
    assert run(*command, folder)[0] == 0
    assert contents(folder) == contents(tmp_path / "whole")


def test_full_disk(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def write_bytes(path: Path, content: bytes) -> int:
        if path.name.startswith("001"):
            write(path, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")  # as from an open file: without its name
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    command = ["generate", *FOX, "--prompt", "a cat", "--prompt", "a dog", "--output", tmp_path]
    code, output, error = run(*command)
    assert (code, output) == (2, "")
    assert error.splitlines()[-1] == (
        f"style-aligned: error: {tmp_path}/001-a-dog.png: no space left on device; what was finished is kept"
    )
    assert set(contents(tmp_path)) == {"000-a-cat.png", "reference.png", "style.safetensors"}
    monkeypatch.undo()


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
