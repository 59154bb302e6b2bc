import errno
import io
import json
import os
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from style_aligned import sampling
from style_aligned.cli import inputs, library, main
from style_aligned.files import is_damaged, read_texts, write_png
from style_aligned.mini import Mini
from style_aligned.style import Style, describe_model

Run = Callable[..., tuple[int, str, str]]
SMALL = ["--size", "64", "--steps", "2"]
FOX = ["--reference", "a fox, neon sign", *SMALL]


@pytest.fixture
def loads(random_mini: Mini, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Have the commands load a model with random weights. What they ask for is collected."""
    asked: list[tuple[str, str, str]] = []

    def load_model(name: str, *, device: str, dtype: str) -> Mini:
        asked.append((name, device, dtype))
        return random_mini

    def palette_distance(images: list[Image.Image]) -> float:
        return float(len(images))

    monkeypatch.setattr(library, "load_model", load_model)
    monkeypatch.setattr(library, "palette_distance", palette_distance)
    return asked


@pytest.fixture
def run(loads: list[tuple[str, str, str]], capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line: gives exit code, standard output and standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def assert_error(result: tuple[int, str, str], pattern: str) -> None:
    """Assert that a command has ended with one line on standard error."""
    code, output, error = result
    assert code == 2
    assert output == ""
    assert error.startswith("style-aligned: error: ")
    assert error.count("\n") == 1
    assert re.search(pattern, error), error


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_image(path: Path) -> Image.Image:
    image = Image.open(path)
    with image:
        return image.copy()


# the process


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["style", "make", "--help"], ["demo", "-h"]])
def test_help_does_without_torch(arguments: list[str]) -> None:
    done = python(
        "import sys; from style_aligned.cli import main; code = main(sys.argv[1:] or "
        f"{arguments!r}); heavy = {{'torch', 'numpy', 'refiners', 'safetensors', 'PIL', 'rich'}} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: style-aligned" in done.stdout


def test_wrong_options_are_told_without_torch() -> None:
    done = python(
        "import sys; from style_aligned.cli import main; code = main(['generate', '--reference', 'a fox', '--prompt',"
        " 'a cat', '--guidance', 'nan', '--output', 'x']); sys.exit('torch' if 'torch' in sys.modules else code)"
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "style-aligned: error: expected --guidance to be a finite number between -1000 and 1000, got nan\n"
    )


# help and options


def test_help_is_shown_without_arguments(run: Run) -> None:
    code, output, error = run()
    assert (code, error) == (0, "")
    assert "Commands:" in output


def test_version(run: Run) -> None:
    code, output, _ = run("--version")
    assert code == 0
    assert output.startswith("style-aligned ")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["generate", "--nonsense"], "No such option"),
        (["generate"], "Missing option '--output'"),
        (["generate", "--prompt", "a cat"], "expected a --reference or a --style, got none"),
        (["generate", "--reference", "a fox"], "expected at least one --prompt, or --prompts with a file, got none"),
        (["generate", "--reference", " ", "--prompt", "a cat"], "expected --reference to have at least one word"),
        (["generate", "--reference", "a fox", "--prompt", ""], "expected --prompt to have at least one word"),
        (["generate", *FOX, "--prompt", "a \udcff"], "expected --prompt to be UTF-8"),
        (["generate", *FOX, "--prompt", "a cat", "--negative", "\udcff"], "expected --negative to be UTF-8"),
        (["generate", *FOX, "--prompt", "a cat", "--guidance", "nan"], "expected --guidance to be a finite number"),
        (["generate", *FOX, "--prompt", "a cat", "--guidance", "inf"], "expected --guidance to be a finite number"),
        (["generate", *FOX, "--prompt", "a cat", "--steps", "-1"], "--steps"),
        (["generate", *FOX, "--prompt", "a cat", "--steps", "0"], "--steps"),
        (["generate", *FOX, "--prompt", "a cat", "--steps", "many"], "--steps"),
        (["generate", *FOX, "--prompt", "a cat", "--seed", "-1"], "--seed"),
        (["generate", *FOX, "--prompt", "a cat", "--seed", str(2**70)], "expected --seed .* of at most 4294967295"),
        (["generate", *FOX, "--prompt", "a cat", "--batch-size", "0"], "--batch-size"),
        (
            ["generate", *FOX, "--prompt", "a cat", "--scale", "-1"],
            "expected --scale to be a finite number of at least 0",
        ),
        (["generate", *FOX, "--prompt", "a cat", "--scale", "nan"], "expected --scale to be a finite number"),
        (["generate", *FOX, "--prompt", "a cat", "--shift", "inf"], "expected --shift to be a finite number, got inf"),
        (["generate", *FOX, "--prompt", "a cat", "--size", "100"], "multiples of 8 between 64 and 8192 .* got 100x100"),
        (["generate", *FOX, "--prompt", "a cat", "--size", "64x0"], "multiples of 8"),
        (["generate", *FOX, "--prompt", "a cat", "--size", "-64"], "expected --size to be WIDTHxHEIGHT"),
        (["generate", *FOX, "--prompt", "a cat", "--size", "999999"], "multiples of 8 between 64 and 8192"),
        (["generate", *FOX, "--prompt", "a cat", "--device", "toaster"], "expected --device to be cpu, cuda"),
        (["generate", *FOX, "--prompt", "a cat", "--dtype", "float8"], "--dtype"),
        (["generate", *FOX, "--prompts", "missing.txt"], "missing.txt: no such file"),
        (["generate", *FOX, "--prompts", "-", "--prompts", "-"], "expected --prompts - once at most, got it 2 times"),
        (["generate", "--style", "missing.safetensors", "--prompt", "a cat"], "missing.safetensors: no such file"),
        (["generate", "--style", "x", "--steps", "3", "--prompt", "a cat"], "expected no --steps beside --style"),
        (["style", "make", "--reference", ""], "expected --reference to have at least one word"),
        (["style", "make", "--reference", "a fox", "--guidance", "nan"], "expected --guidance to be a finite number"),
        (["demo", "--steps", "0"], "--steps"),
        (["evaluate", "--guidance", "nan"], "expected --guidance to be a finite number"),
    ],
)
def test_wrong_input_is_refused_before_the_model_is_loaded(
    run: Run, loads: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    needs_output = arguments[0] in ("generate", "style", "demo", "evaluate") and "Missing" not in pattern
    assert_error(run(*arguments, *(["--output", tmp_path / "new"] if needs_output else [])), pattern)
    assert loads == []
    assert list(tmp_path.iterdir()) == []


def test_output_in_the_way(run: Run, loads: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    generate = ["generate", *FOX, "--prompt", "a cat", "--output"]
    assert_error(run(*generate, file), "expected --output to be a folder, got the file")
    assert_error(run(*generate, file / "new"), "to be in a folder, got the file")
    make = ["style", "make", "--reference", "a fox", "--output"]
    assert_error(run(*make, tmp_path), "expected --output to be a file, got the folder")
    assert_error(run(*make, file), "exists already: --force replaces it")
    assert_error(run("demo", "--output", tmp_path), "expected --output to be a file, got the folder")

    def no_access(path: Path, mode: int) -> bool:
        return False

    monkeypatch.setattr(os, "access", no_access)
    assert_error(run(*generate, tmp_path / "new"), "to be writable")
    assert loads == []
    assert file.read_bytes() == b""


# prompts from files


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("prompts.txt", b"", "prompts.txt: expected at least one prompt, got an empty file"),
        ("prompts.txt", b"\n \r\n\t\n", "expected at least one prompt"),
        ("prompts.txt", b"a cat\na dog\na \xff fox\n", "prompts.txt, line 3: expected UTF-8, got the byte 0xff"),
        ("prompts.txt", b"a cat\nzero \0 byte\n", "prompts.txt, line 2 to be a text, got one with a zero byte"),
        ("prompts.jsonl", b'{"prompt": "a cat"}\n\n{"prompt": \n', "prompts.jsonl, line 3: expected a JSON object"),
        ("prompts.jsonl", b'{"prompt": "a cat"}\n["a dog"]\n', "line 2: expected a JSON object"),
        ("prompts.jsonl", b'{"prompt": 3}\n', "line 1: expected a JSON object"),
        (
            "prompts.jsonl",
            b'{"prompt": "a cat", "sed": 3}\n',
            "line 1: expected no keys but prompt and seed, got 'sed'",
        ),
        ("prompts.jsonl", b'{"prompt": "a cat", "seed": 1.5}\n', "line 1: expected seed to be a whole number"),
        ("prompts.jsonl", b'{"prompt": "a cat", "seed": true}\n', "line 1: expected seed to be a whole number"),
        ("prompts.jsonl", b'{"prompt": "a cat", "seed": -1}\n', "line 1: expected seed to be a whole number"),
        ("prompts.jsonl", b'{"prompt": " "}\n', "line 1 to have at least one word"),
        ("prompts.jsonl", b'{"prompt": "\\ud800"}\n', "line 1 to be UTF-8"),
        ("prompts.jsonl", b"[" * 100_000, "line 1: expected a JSON object"),
    ],
)
def test_bad_prompts_files(run: Run, loads: list[Any], tmp_path: Path, name: str, content: bytes, pattern: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert_error(run("generate", *FOX, "--prompts", tmp_path / name, "--output", tmp_path / "out"), pattern)
    assert loads == []
    assert not (tmp_path / "out").exists()


def test_prompts_files(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_bytes("\ufeffa cat\r\n\r\n  a dög \u2028 here\n".encode())
    assert inputs.read_prompts(str(text)) == [inputs.Prompt("a cat"), inputs.Prompt("a dög \u2028 here")]
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "a cat", "seed": 7}\n\n{"prompt": "a dog\\nhere"}\n')
    assert inputs.read_prompts(str(lines)) == [inputs.Prompt("a cat", 7), inputs.Prompt("a dog\nhere")]


@pytest.mark.parametrize(("content", "seed"), [(b"a cat\n", None), (b'{"prompt": "a cat", "seed": 3}\n', 3)])
def test_prompts_on_standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes, seed: int | None) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert inputs.read_prompts("-") == [inputs.Prompt("a cat", seed)]


def test_ten_thousand_prompts(run: Run, random_mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"a cat {number}\n" for number in range(10_000)))
    image = Image.new("RGB", (8, 8), "red")

    def generate(model: Any, style: Any, prompts: list[str], seeds: list[int], **_: Any) -> Any:
        for prompt, seed in zip(prompts, seeds, strict=True):
            yield sampling.Sample(prompt, seed, torch.zeros(1, 4, 8, 8), image)

    monkeypatch.setattr(sampling, "generate", generate)
    out = tmp_path / "out"
    code, output, _ = run("generate", *FOX, "--prompts", file, "--output", out)
    assert code == 0
    assert output.startswith("10000 new images")
    assert (out / "0000-a-cat-0.png").is_file()
    assert read_texts(out / "9999-a-cat-9999.png")["seed"] == "10000"
    assert max(read_image(out / "sheet.png").size) < 10_000


# generate


def test_images_and_their_settings(run: Run, loads: list[Any], random_mini: Mini, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    code, output, error = run(
        "generate", *FOX, "--prompt", "a rocket, neon sign", "--prompt", "a cat", "--seed", "5", "--guidance", "3",
        "--negative", "a dog", "--scale", "1.5", "--output", out,
    )  # fmt: skip
    assert code == 0, error
    assert output == f"2 new images in {out}; all together: {out / 'sheet.png'}\n"
    assert "trained for images of about 256x256: at 64x64" in error
    assert set(contents(out)) == {
        "000-a-rocket-neon-sign.png", "001-a-cat.png", "reference.png", "sheet.png", "style.safetensors",
    }  # fmt: skip
    assert loads == [("mini", "cpu", "float32")]

    texts = read_texts(out / "000-a-rocket-neon-sign.png")
    settings = json.loads(texts["settings"])
    assert (texts["prompt"], texts["seed"]) == ("a rocket, neon sign", "6")
    assert settings["reference"] == "a fox, neon sign"
    assert (settings["steps"], settings["guidance"], settings["size"]) == (2, 3.0, "64x64")
    assert (settings["negative_prompt"], settings["options"]) == (
        "a dog",
        {"share_group_norm": True, "scale": 1.5},
    )

    # the library, called directly, gives the same pixels
    style = Style.load(out / "style.safetensors")
    sample = next(sampling.generate(random_mini, style, ["a rocket, neon sign", "a cat"]))
    assert read_image(out / "000-a-rocket-neon-sign.png").tobytes() == sample.image.tobytes()


def test_same_command_same_bytes(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("generate", *FOX, "--prompt", "a cat", "--compare", "--output", tmp_path / name)[0] == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_compare(run: Run, random_mini: Mini, tmp_path: Path) -> None:
    run("generate", *FOX, "--prompt", "a cat", "--prompt", "a dog", "--compare", "--output", tmp_path)
    assert {"unaligned/000-a-cat.png", "unaligned/001-a-dog.png"} < set(contents(tmp_path))
    style = Style.load(tmp_path / "style.safetensors")
    sample = next(sampling.generate_unaligned(random_mini, style, ["a cat", "a dog"]))
    assert read_image(tmp_path / "unaligned" / "000-a-cat.png").tobytes() == sample.image.tobytes()
    assert json.loads(read_texts(tmp_path / "unaligned" / "000-a-cat.png")["settings"])["aligned"] is False


def test_style_files_make_a_grid(run: Run, tmp_path: Path) -> None:
    for name, reference in (("fox", "a fox, neon sign"), ("dog", "a dog, ink")):
        file = tmp_path / f"{name}.safetensors"
        assert run("style", "make", "--reference", reference, *SMALL, "--output", file)[0] == 0
    grid = tmp_path / "grid"
    code, output, _ = run(
        "generate", "--style", tmp_path / "fox.safetensors", "--style", tmp_path / "dog.safetensors",
        "--prompt", "a cat", "--prompt", "a rocket", "--output", grid,
    )  # fmt: skip
    assert code == 0
    assert output.startswith("4 new images")
    assert set(contents(grid)) == {"sheet.png"} | {
        f"{folder}/{name}"
        for folder in ("000-fox", "001-dog")
        for name in ("reference.png", "000-a-cat.png", "001-a-rocket.png")
    }
    alone = tmp_path / "alone"
    run("generate", "--reference", "a dog, ink", *SMALL, "--prompt", "a cat", "--prompt", "a rocket", "--output", alone)
    assert (alone / "001-a-rocket.png").read_bytes() == (grid / "001-dog" / "001-a-rocket.png").read_bytes()


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


def test_images_of_other_settings_are_not_replaced(run: Run, loads: list[Any], tmp_path: Path) -> None:
    command = ["generate", "--reference", "a fox", "--size", "64", "--prompt", "a cat", "--output", tmp_path]
    assert run(*command, "--steps", "2")[0] == 0
    before = contents(tmp_path)
    loads.clear()
    assert_error(run(*command, "--steps", "3"), "000-a-cat.png is of another run: it has steps=2, not 3 .*--force")
    assert_error(run(*command, "--steps", "2", "--seed", "9"), "another run: it has reference_seed=0, not 9")
    assert loads == []
    assert contents(tmp_path) == before
    code, output, _ = run(*command, "--steps", "3", "--force")
    assert code == 0
    assert output.startswith("1 new image in")
    assert json.loads(read_texts(tmp_path / "000-a-cat.png")["settings"])["steps"] == 3

    (tmp_path / "000-a-cat.png").write_bytes(b"my own notes")
    assert_error(run(*command, "--steps", "3"), "000-a-cat.png is of another program: it holds no settings")
    assert (tmp_path / "000-a-cat.png").read_bytes() == b"my own notes"


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


def test_what_is_of_others_is_not_replaced(run: Run, loads: list[Any], tmp_path: Path) -> None:
    style = tmp_path / "fox.safetensors"
    assert run("style", "make", "--reference", "a fox", *SMALL, "--output", style)[0] == 0
    loads.clear()
    out = tmp_path / "out"
    command = ["generate", "--style", style, "--reference", "a dog", "--prompt", "a cat", "--compare"]
    others = Image.effect_noise((64, 64), 50).convert("RGB")
    foreign: list[tuple[str, dict[str, str], str]] = [
        ("sheet.png", {}, "is of another program: it is no contact sheet"),
        ("sheet.png", {"kind": "demonstration"}, "is of another program: it is no contact sheet"),
        ("000-a-dog/reference.png", {}, "is of another program: it holds no settings"),
        ("001-fox/reference.png", {}, "is of another program: it holds no settings"),
        ("001-fox/unaligned/000-a-cat.png", {}, "is of another program: it holds no settings"),
        ("001-fox/000-a-cat.png", {"settings": "no JSON"}, "is of another program: its settings are not a JSON object"),
        ("001-fox/000-a-cat.png", {"settings": "[]"}, "is of another program: its settings are not a JSON object"),
    ]
    for name, texts, message in foreign:
        write_png(out / name, others, texts)
        before = contents(out)
        assert_error(run(*command, "--output", out), re.escape(f"{out / name} {message} (--force replaces it, or take"))
        assert loads == []
        assert contents(out) == before
        (out / name).unlink()

    write_png(out / "sheet.png", others)
    assert run(*command, "--output", out, "--force")[0] == 0
    assert read_texts(out / "sheet.png")["kind"] == "contact sheet"
    (out / "sheet.png").write_bytes((out / "sheet.png").read_bytes()[:-20])
    assert run(*command, "--output", out)[0] == 0
    assert not is_damaged(out / "sheet.png")


def test_a_damaged_style_in_the_folder(run: Run, tmp_path: Path) -> None:
    command = ["generate", *FOX, "--prompt", "a cat", "--output", tmp_path]
    run(*command)
    before = contents(tmp_path)
    path = tmp_path / "style.safetensors"
    for content in (before["style.safetensors"][:-100], b"", b"my own notes"):
        path.write_bytes(content)
        code, _, error = run(*command)
        assert code == 2
        assert f"error: {path} is damaged, or no style file: expected" in error.splitlines()[-1]
        assert error.splitlines()[-1].endswith("(--force replaces it)")
        assert path.read_bytes() == content
    assert run(*command, "--force")[0] == 0
    assert contents(tmp_path) == before


def test_several_prompts_files(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a cat\na dog\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "a rocket", "seed": 7}\n')
    files = ["--prompts", tmp_path / "a.txt", "--prompts", tmp_path / "b.jsonl"]
    asked: list[Any] = []

    def generate(output: Path, *, prompts: list[inputs.Prompt], **_: Any) -> None:
        asked.extend(prompts)

    monkeypatch.setattr("style_aligned.cli.run.generate", generate)
    assert run("generate", *FOX, "--prompt", "a fox", *files, "--output", tmp_path / "out")[0] == 0
    assert asked == [
        inputs.Prompt("a fox"),
        inputs.Prompt("a cat"),
        inputs.Prompt("a dog"),
        inputs.Prompt("a rocket", 7),
    ]


@pytest.mark.parametrize("command", ["style make", "demo", "evaluate"])
def test_only_generate_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def load_model(name: str, **_: str) -> Mini:
        raise KeyboardInterrupt

    monkeypatch.setattr(library, "load_model", load_model)
    reference = ["--reference", "a fox"] if command == "style make" else []
    code, output, error = run(*command.split(), *reference, "--output", tmp_path / "new")
    assert (code, output) == (130, "")
    assert error.splitlines()[-1] == "style-aligned: interrupted"
    assert list(tmp_path.iterdir()) == []


def test_seeds_of_prompts_and_overrides_of_style_files(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "fox.safetensors"
    run("style", "make", "--reference", "a fox", "--seed", "3", *SMALL, "--output", file)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a cat", "seed": 77}\n{"prompt": "a dog"}\n')
    command = ["generate", "--style", file, "--prompts", prompts]
    assert run(*command, "--output", tmp_path / "a")[0] == 0
    overrides = ["--seed", "20", "--shift", "0.5", "--no-share-group-norm"]
    assert run(*command, *overrides, "--output", tmp_path / "b")[0] == 0
    seeds = [read_texts(tmp_path / name)["seed"] for name in ("a/000-a-cat.png", "a/001-a-dog.png", "b/001-a-dog.png")]
    assert seeds == ["77", "5", "22"]
    options = [json.loads(read_texts(tmp_path / name / "000-a-cat.png")["settings"])["options"] for name in ("a", "b")]
    assert options == [{"share_group_norm": True}, {"share_group_norm": False, "shift": 0.5}]


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        ("mini", [], (3.0, {"share_group_norm": True})),
        ("mini", ["--guidance", "5", "--no-share-group-norm"], (5.0, {"share_group_norm": False})),
        ("base.safetensors", [], (5.0, {})),
        ("base.safetensors", ["--share-group-norm"], (5.0, {"share_group_norm": True})),
    ],
)
def test_the_embedded_model_has_defaults_of_its_own(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, given: list[str], expected: object
) -> None:
    asked: list[Any] = []

    def make_style(output: Path, reference: str, settings: Any, load: object) -> None:
        asked.append(settings)

    monkeypatch.setattr("style_aligned.cli.run.make_style", make_style)
    command = ["style", "make", "--reference", "a fox", "--model", model, *given, "--output", tmp_path / "fox"]
    assert run(*command)[0] == 0
    assert (asked[0].guidance, asked[0].reference_options) == expected


def test_damaged_style_files(run: Run, loads: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "fox.safetensors"
    run("style", "make", "--reference", "a fox", *SMALL, "--output", file)
    whole = file.read_bytes()
    loads.clear()
    altered = whole[:-1] + bytes([whole[-1] ^ 1])
    for content in (whole[:-1], whole[:50], b"", b"text", altered):
        file.write_bytes(content)
        command = ["generate", "--style", file, "--prompt", "a cat", "--output", tmp_path / "out"]
        assert_error(run(*command), "fox.safetensors")
        assert_error(run("style", "show", file), "fox.safetensors")
    assert loads == []
    assert not (tmp_path / "out").exists()


def test_a_style_of_other_weights_takes_force(run: Run, random_mini: Mini, tmp_path: Path) -> None:
    file = tmp_path / "fox.safetensors"
    run("style", "make", "--reference", "a fox", *SMALL, "--output", file)
    command = ["generate", "--style", file, "--compare", "--output", tmp_path / "out"]
    cat, dog = ["--prompt", "a cat"], ["--prompt", "a dog"]
    weight = next(random_mini.unet.parameters())
    before = weight.clone()

    def models() -> set[str]:
        images = [path for path in (tmp_path / "out").rglob("*.png") if path.name != "sheet.png"]
        return {json.loads(read_texts(path)["settings"])["model"]["fingerprint"] for path in images}

    try:
        weight.data += 1
        code, _, error = run(*command, *cat)
        assert code == 2
        assert "fingerprint" in error.splitlines()[-1]
        assert not (tmp_path / "out").exists()
        weight.data.copy_(before)
        assert run(*command, *cat)[0] == 0
        assert models() == {describe_model(random_mini)["fingerprint"]}
        by_the_first = (tmp_path / "out" / "000-a-cat.png").read_bytes()

        # the images say which model drew them, and those of the other are made again
        weight.data += 1
        code, output, _ = run(*command, *cat, *dog, "--force")
        assert (code, output[:13]) == (0, "4 new images ")
        assert models() == {describe_model(random_mini)["fingerprint"]}
        assert (tmp_path / "out" / "000-a-cat.png").read_bytes() != by_the_first
        assert run(*command, *cat, *dog, "--force")[1].startswith("0 new images")
    finally:
        weight.data.copy_(before)
    assert_error(run(*command, *cat), "000-a-cat.png is of another run: it has model=")


def test_warnings_about_prompts(run: Run, tmp_path: Path) -> None:
    long = "a cat " * 100
    code, _, error = run("generate", *FOX, "--prompt", "a dragon, neon sign", "--prompt", long, "--output", tmp_path)
    assert code == 0
    assert "warning: the embedded model does not know 'dragon': `style-aligned concepts` lists" in error
    assert "warning: 1 prompt is longer than 30 words" in error
    assert all(line.startswith("style-aligned: warning: ") for line in error.splitlines())


def test_unexpected_errors_are_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(name: str, *, device: str, dtype: str) -> Mini:
        raise RuntimeError("several\n  lines\nof it")

    monkeypatch.setattr(library, "load_model", load_model)
    command = ["generate", *FOX, "--prompt", "a cat", "--output", tmp_path / "out"]
    assert_error(run(*command), "RuntimeError: several lines of it .*STYLE_ALIGNED_DEBUG=1")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("STYLE_ALIGNED_DEBUG", "1")
    with pytest.raises(RuntimeError, match="several"):
        run(*command)


# the other commands


def test_show_style(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "new" / "fox.safetensors"
    code, output, _ = run("style", "make", "--reference", "a fox", "--seed", "4", *SMALL, "--output", file)
    assert code == 0
    assert f"--style {file}" in output
    preview = tmp_path / "preview.png"
    code, output, error = run("style", "show", file, "--preview", preview)
    assert (code, error) == (0, "")
    shown = dict(line.split(":", maxsplit=1) for line in output.splitlines())
    assert (shown["reference"].strip(), shown["reference seed"].strip()) == ("a fox", "4")
    assert (shown["steps"].strip(), shown["size"].strip()) == ("2", "64x64")
    assert read_image(preview).size == (64, 64)


def test_a_preview_replaces_nothing(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "fox.safetensors"
    run("style", "make", "--reference", "a fox", *SMALL, "--output", file)
    before = file.read_bytes()
    (tmp_path / "link").symlink_to(file)
    for preview in (file, tmp_path / "link", tmp_path / "." / "fox.safetensors"):
        for force in ([], ["--force"]):
            result = run("style", "show", file, "--preview", preview, *force)
            assert_error(result, "expected --preview to be another file than the style file, got")
    assert file.read_bytes() == before

    notes = tmp_path / "notes.png"
    notes.write_bytes(b"my own notes")
    assert_error(run("style", "show", file, "--preview", notes), "notes.png exists already: --force replaces it")
    assert notes.read_bytes() == b"my own notes"
    assert run("style", "show", file, "--preview", notes, "--force")[0] == 0
    assert read_image(notes).size == (64, 64)
    assert_error(run("style", "show", file, "--preview", tmp_path), "expected --preview to be a file, got the folder")
    assert_error(run("style", "show", file, "--preview", file / "new"), "expected --preview .* to be in a folder")
    assert_error(run("style", "show", file, "--preview", "/dev/null"), "expected --preview .* is a device or a pipe")


def test_concepts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("style_aligned.mini.known_concepts", lambda: ["rocket", "fox"])
    monkeypatch.setattr("style_aligned.mini.known_styles", lambda: ["neon sign"])
    code, output, _ = run("concepts")
    assert code == 0
    assert output.splitlines()[:4] == ["Styles (1):", "  neon sign", "Concepts (2):", "  fox     rocket"]


def test_demo(run: Run, loads: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from style_aligned import demo

    picture = tmp_path / "demo.png"

    def draw_demo(model: Any, **options: Any) -> Image.Image:
        assert options["steps"] == 2
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(demo, "draw_demo", draw_demo)
    code, output, _ = run("demo", "--steps", "2", "--output", picture)
    assert code == 0
    assert output.count("\n") == 1
    assert str(picture) in output
    assert "style-aligned generate" in output
    assert read_image(picture).size == (8, 8)
    assert run("demo", "--steps", "2", "--output", picture)[0] == 0

    loads.clear()
    others = tmp_path / "others.png"
    write_png(others, Image.new("RGB", (8, 8), "red"))
    (tmp_path / "notes.txt").write_bytes(b"my own notes")
    for path in (others, tmp_path / "notes.txt"):
        before = path.read_bytes()
        assert_error(run("demo", "--output", path), "expected --output to be new, or of an earlier demo, got .*/[no]")
        assert path.read_bytes() == before
    assert loads == []


def test_the_picture_of_the_demo(random_mini: Mini) -> None:
    from style_aligned.demo import Row, count_images, draw_demo

    rows = [Row("ink", ("a cat", "a dog"), seed=1), Row("neon sign", ("a fox", "a rocket"), seed=2)]
    steps: list[int] = []
    images: list[None] = []
    picture = draw_demo(random_mini, rows, steps=1, on_step=steps.append, on_image=lambda: images.append(None))
    assert count_images(rows) == sum(steps) == len(images) == 6
    assert picture.width > picture.height


def test_convert(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def convert_checkpoint(source: str, target: Path, *, half: bool, dry_run: bool) -> str:
        asked.append((source, target, half, dry_run))
        if source == "bad.ckpt":
            raise ValueError("bad.ckpt: a pickle,\nwhich could run anything")
        return "converted"

    module = ModuleType("style_aligned.checkpoints")
    vars(module)["convert_checkpoint"] = convert_checkpoint
    monkeypatch.setitem(sys.modules, "style_aligned.checkpoints", module)
    assert run("convert", "--from", "model", "--to", tmp_path / "new", "--half", "--dry-run") == (0, "converted\n", "")
    assert run("convert", "--from", "model", "--to", tmp_path / "new")[0] == 0
    assert asked == [("model", tmp_path / "new", True, True), ("model", tmp_path / "new", False, False)]
    assert_error(run("convert", "--from", "bad.ckpt", "--to", tmp_path), "a pickle, which could run anything")
    assert_error(run("convert", "--from", "model"), "Missing option '--to'")


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Have the command evaluate nothing. The options that it gives are collected."""
    number = SimpleNamespace(value=0.5)
    figures = {"style": number, "concept": number, "palette_distance": number}
    rows = [
        SimpleNamespace(setting=setting, variant=variant, **figures)
        for setting in ("same style", "style in the reference only")
        for variant in ("unaligned", "aligned, but without anything at all")
    ]
    asked: dict[str, Any] = {}

    def evaluate(model: Mini, *, on_progress: Callable[[int, int], None], **options: Any) -> SimpleNamespace:
        asked.update(options)
        on_progress(1, 2)
        return SimpleNamespace(rows=rows, to_dict=lambda: {**options, "rows": [3]})

    module = ModuleType("style_aligned.evaluation")
    vars(module)["evaluate"] = evaluate
    monkeypatch.setitem(sys.modules, "style_aligned.evaluation", module)
    return asked


def test_evaluate(run: Run, evaluated: dict[str, Any], tmp_path: Path) -> None:
    code, output, error = run("evaluate", "--sets", "3", "--steps", "2", "--output", tmp_path / "results.json")
    assert (code, error) == (0, "")
    lines = output.splitlines()
    table = [re.split("  +", line) for line in lines]
    assert table[0] == ["setting", "variant", "style", "concept", "palette distance"]
    assert table[1] == ["same style", "unaligned", "50.0%", "50.0%", "0.5"]
    assert table[4][:2] == ["style in the reference only", "aligned, but without anything at all"]
    assert len({len(line) for line in lines}) == 1
    assert len({line.index(cells[1]) for line, cells in zip(lines, table, strict=True)}) == 1
    assert evaluated == {"sets": 3, "set_size": 5, "seed": 0, "steps": 2, "guidance": 3.0, "batch_size": 20}
    assert json.loads((tmp_path / "results.json").read_text())["sets"] == 3


def test_an_evaluation_replaces_evaluations_only(
    run: Run, loads: list[Any], evaluated: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    for content in (b"my own notes", b"", b"[1, 2]", b'{"rows": []}', b"[" * 100_000, b"\xff"):
        path.write_bytes(content)
        result = run("evaluate", "--output", path)
        assert_error(result, "expected --output to be new, or of an earlier evaluation, got .*results.json")
        assert path.read_bytes() == content
    assert loads == []
    path.unlink()
    for sets in (2, 3):
        assert run("evaluate", "--sets", str(sets), "--output", path)[0] == 0
        assert json.loads(path.read_text())["sets"] == sets


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
def test_a_device_that_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = ModuleType("style_aligned.checkpoints")
    vars(module)["load_model"] = None
    monkeypatch.setitem(sys.modules, "style_aligned.checkpoints", module)
    out = tmp_path / "out"
    assert main(["generate", *FOX, "--prompt", "a cat", "--device", "cuda", "--output", str(out)]) == 2
    assert "expected a device that is there, got 'cuda'" in capsys.readouterr().err
    assert not out.exists()


def test_the_library_is_quiet(run: Run, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("generate", *FOX, "--prompt", "a cat", "--output", tmp_path)[0] == 0


def test_the_reference_page_is_current() -> None:
    root = Path(__file__).parents[1]
    page = runpy.run_path(str(root / "scripts" / "write_cli_reference.py"))["page"]
    assert (root / "docs" / "command-line.md").read_text(encoding="utf-8") == page()
