"""Every kind of wrong input, and what goes wrong later: one line, and nothing left behind."""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import refiners.fluxion.layers as fl
import torch
from refiners.fluxion.layers.chain import ChainError

from style_aligned.cli import library, main
from style_aligned.cli.console import describe
from style_aligned.models.mini import Mini, known_concepts, known_styles, load_mini
from style_aligned.models.mini.model import WEIGHTS
from style_aligned.sets import work
from style_aligned.sets.image_set import open_set
from style_aligned.styles.file import read_style_file, write_style_file
from tests.cli.conftest import FOX, Run, assert_error, error_lines
from tests.sets.conftest import contents, pictures

NEW = ["--output", "new"]


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["generate", "--nonsense"], "No such option"),
        (["generate", *FOX, "a cat"], "Missing option '--output'"),
        (["generate", *NEW], "expected a style and what to draw, as in generate"),
        (
            ["generate", *FOX, *NEW],
            r"expected at least one prompt to draw in that style, got none \(style-aligned style",
        ),
        (["generate", " ", "a cat", *NEW], "expected the reference to have at least one word"),
        (["generate", "--reference", " ", "a cat", *NEW], "expected --reference to have at least one word"),
        (["generate", *FOX, "", *NEW], "expected a prompt to have at least one word"),
        (["generate", *FOX, "a \udcff", *NEW], "expected a prompt to be UTF-8"),
        (["generate", *FOX, "a cat", "--negative", "\udcff", *NEW], "expected --negative to be UTF-8"),
        (["generate", *FOX, "a cat", "--suffix", "\udcff", *NEW], "expected --suffix to be UTF-8"),
        (["generate", *FOX, "a cat", "--guidance", "nan", *NEW], "expected --guidance to be a finite number"),
        (["generate", *FOX, "a cat", "--guidance", "inf", *NEW], "expected --guidance to be a finite number"),
        (
            ["generate", *FOX, "a cat", "--steps", "0", *NEW],
            "expected --steps to be a whole number between 1 and 1000, got 0$",
        ),
        (["generate", *FOX, "a cat", "--steps", "many", *NEW], "expected --steps to be a whole number, got 'many'$"),
        (
            ["generate", *FOX, "a cat", "--seed", "-1", *NEW],
            "expected --seed to be a whole number of at least 0, got -1$",
        ),
        (["generate", *FOX, "a cat", "--seed", str(2**70), *NEW], "expected --seed .* between 0 and 4294967295"),
        (["generate", *FOX, "a cat", "--seed", str(10**400), *NEW], "expected --seed .* between 0 and 4294967295"),
        (
            ["add", "icons", "a cat", "--seed", str(2**32)],
            "expected --seed .* between 0 and 4294967295, got 4294967296$",
        ),
        (["reroll", "icons", "cat", "--seed", str(2**32)], "expected --seed .* between 0 and 4294967295"),
        (
            ["generate", *FOX, "a cat", "--batch-size", "0", *NEW],
            "expected --batch-size to be a whole number of at least 1, got 0$",
        ),
        (
            ["generate", *FOX, "a cat", "--chunk-seconds", "nan", *NEW],
            "expected --chunk-seconds to be a finite number of .* 0, got nan$",
        ),
        (["generate", *FOX, "a cat", "--scale", "much", *NEW], "expected --scale to be a number, got 'much'$"),
        (["generate", *FOX, "a cat", "--scale", "-1", *NEW], "expected --scale to be a finite number .*, got -1"),
        (["generate", *FOX, "a cat", "--scale", "nan", *NEW], "expected --scale to be a finite number"),
        (["generate", *FOX, "a cat", "--shift", "inf", *NEW], "expected --shift to be a finite number.*, got inf"),
        (
            ["generate", *FOX, "a cat", "--only-self-level", "2", *NEW],
            "expected --only-self-level .* between 0 and 1, got 2",
        ),
        (["generate", "a fox", "a cat", "--size", "100", *NEW], "multiples of 8 between 64 and 8192 .* got 100x100"),
        (["generate", "a fox", "a cat", "--size", "64x0", *NEW], "expected --size to be WIDTHxHEIGHT"),
        (["generate", "a fox", "a cat", "--size", "-64", *NEW], "expected --size to be WIDTHxHEIGHT"),
        (["generate", "a fox", "a cat", "--size", "999999", *NEW], "multiples of 8 between 64 and 8192"),
        (["generate", *FOX, "a cat", "--device", "toaster", *NEW], "expected --device to be auto, cpu, cuda"),
        (
            ["generate", *FOX, "a cat", "--device", "gpu", *NEW],
            r"got 'gpu' \(a GPU of NVIDIA or AMD is cuda, one of Apple mps",
        ),
        (["generate", *FOX, "a cat", "--bank-device", "gpu", *NEW], "expected --bank-device to be auto, cpu"),
        (
            ["generate", *FOX, "a cat", "--dtype", "float8", *NEW],
            "expected --dtype to be auto, float32, float16 or bfloat16, got 'float8'$",
        ),
        (["generate", *FOX, "--prompts", "missing.txt", *NEW], "missing.txt: no such file"),
        (["generate", *FOX, "--prompts", "-", "--prompts", "-", *NEW], "expected --prompts - once at most, got it 2"),
        (
            ["generate", "--style", "missing.safetensors", "a cat", *NEW],
            "a style file, a set's folder or a picture, got 'missing",
        ),
        (["generate", "missing.safetensors", "a cat", *NEW], "got 'missing.safetensors', which is not there"),
        (
            ["generate", "looks/3", "a cat", *NEW],
            r"got 'looks/3', which is not there \(a prompt that looks like a file",
        ),
        (["generate", "fox.png", "a cat", *NEW], "got 'fox.png', which is not there"),
        (["generate", "folder", "a cat", *NEW], "folder is a folder without a style"),
        (["generate", "--style", "folder", "a cat", *NEW], "folder is a folder without a style"),
        (
            ["generate", "candidates", "a cat", *NEW],
            "candidates holds 1 style: take one of them, such as candidates/1",
        ),
        (["generate", "picture.png", "a cat", *NEW], "expected picture.png to be a picture, got an empty file"),
        (["show", "picture.png"], "expected a style file or a set's folder, got the picture picture.png: make a style"),
        (["add", "missing", "a cat"], "expected missing to be the folder of a set, got nothing"),
        (["add", "picture.png", "a cat"], "expected picture.png to be the folder of a set, got a file"),
        (["add", "folder", "a cat"], "expected folder to be the folder of a set, got one without set.json"),
        (["explore", " ", *NEW], "expected the prompt to have at least one word"),
        (["style", "", *NEW], "expected the prompt to have at least one word"),
        (
            ["style", "a fox", "--output", "fox.png"],
            "expected --output to end in .safetensors, as style files do, got fox.png",
        ),
        (["style", "a fox", "--guidance", "nan", *NEW], "expected --guidance to be a finite number"),
        (["show", "missing"], "expected a style file or a set's folder, got 'missing', which is not there"),
        (["demo", "--steps", "0", *NEW], "expected --steps to be a whole number between 1 and 1000, got 0$"),
        (["evaluate", "--guidance", "nan", *NEW], "expected --guidance to be a finite number"),
    ],
)
def test_wrong_input_is_refused_before_the_model_is_loaded(
    run: Run, loads: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "candidates"):
        Path(folder).mkdir()
    for file in ("picture.png", "candidates/1.safetensors"):
        Path(file).touch()
    before = sorted(tmp_path.rglob("*"))
    assert_error(run(*arguments), pattern)
    assert loads == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_style_is_no_model(run: Run, icons: Path) -> None:
    style = str(icons / "style.safetensors")
    for command in (["generate", *FOX, "a cat", *NEW], ["add", icons, "a cow"]):
        message = f"expected --model to be a model, got the style file {style}: give it as the first argument"
        assert_error(run(*command, "--model", style), message)


def test_images_that_do_not_exist_or_are_not_unique(run: Run, loads: list[Any], icons: Path) -> None:
    run("add", icons, "a black cat")
    loads.clear()
    before = contents(icons)
    for command in ("reroll", "remove"):
        assert_error(
            run(command, icons, "lamp"), "no image is called 'lamp': the set has 001-a-cat, 002-a-dog, 003-a-bl"
        )
        assert_error(
            run(command, icons, "a"), "expected 'a' to name one image, got 3 that it fits: 001-a-cat, .*its id"
        )
        assert_error(run(command, icons, "dog", "lamp"), "no image is called 'lamp'")
    assert_error(run("restore", icons, "dog"), "nothing of icons was replaced or removed")
    assert_error(run("rename", icons, "dog", "a/b"), "expected the name to be a file's name, without folders")
    assert_error(run("rename", icons, "2", "001-a-cat"), "expected a name that no other file of the set has")
    assert loads == []
    assert contents(icons) == before


def test_sets_that_cannot_be_read(run: Run, loads: list[Any], icons: Path) -> None:
    path = icons / "set.json"
    whole = path.read_text()
    loads.clear()
    for content, message in (
        (whole[:100], "icons/set.json is damaged"),
        (
            whole.replace('"version": 1', '"version": 9'),
            "icons/set.json is of version 9, and this style-aligned knows up",
        ),
        (whole.replace("001-a-cat.png", "../cat.png"), "a file within the set's folder, got '../cat.png'"),
    ):
        path.write_text(content)
        for command in (["add", icons], ["show", icons], ["generate", *FOX, "a cat", "--output", icons]):
            assert_error(run(*command), message)
        assert path.read_text() == content
    assert loads == []


def test_two_runs_in_one_folder(run: Run, loads: list[Any], icons: Path) -> None:
    with open_set(icons):
        loads.clear()
        for command in (
            ["add", icons, "a cow"], ["reroll", icons, "cat"], ["remove", icons, "cat"], ["sheet", icons],
            ["generate", *FOX, "a cow", "--output", icons],
        ):  # fmt: skip
            assert_error(run(*command), "another run is at work in icons: wait for it, or take another folder")
        assert loads == []
        assert run("show", icons)[0] == 0


def test_a_style_of_another_kind_of_model(run: Run, icons: Path) -> None:
    path = icons / "style.safetensors"
    ((settings, tensors, preview, _),) = read_style_file(path)
    for own, message in (
        ("StableDiffusion_XL", "icons/style.safetensors is of SDXL, and the model is the embedded model: add --model"),
        ("StableDiffusion_1", "is of Stable Diffusion 1.5, and the model is the embedded model: add --model"),
    ):
        changed = {**settings, "size": list(settings["size"]), "model": {**settings["model"], "class": own}}
        write_style_file(path, changed, tensors, preview)
        assert_error(run("generate", icons, "a cat", *NEW), message)
        assert_error(run("add", icons, "a cow"), message)
    assert not Path("new").exists()


def test_more_than_there_is(run: Run, icons: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = ["--size", "8192x8192", "--steps", "2"]
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=4 * 10**9))
    result = run("generate", "a fox", "a cat", *size, *NEW)
    assert_error(
        result, r"images of 8192x8192, 1 at a time, take about [\d.]+ GB of memory, and there are 4.0 GB: choose"
    )

    def disk_usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=10_000)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    result = run("generate", *FOX, "a cat", "a dog", *NEW)
    assert_error(result, "2 images of 64x64 take about 0.0 GB of disk, and 0.0 GB are free: make room, or draw fewer")
    assert not Path("new").exists()


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours(run: Run, loads: list[Any], tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    for command in (["generate", *FOX, "a cat"], ["style", "a fox"], ["demo"], ["evaluate"]):
        output = tmp_path / "new.safetensors"
        assert_error(run(*command, "--output", output), f"expected --output {output} to be writable, got the folder")
    assert loads == []


@pytest.mark.parametrize("name", ["unet.safetensors", "autoencoder.safetensors", "text_encoder.safetensors"])
def test_damaged_weights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    weights, out = tmp_path / "weights", tmp_path / "out.safetensors"
    shutil.copytree(WEIGHTS, weights)
    monkeypatch.setattr("style_aligned.models.mini.load_mini", partial(load_mini, folder=weights))
    path = weights / name
    whole = path.read_bytes()
    middle = len(whole) // 2
    for command, content, message in (
        (
            ["generate", *FOX, "a cat"],
            whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "is corrupted: expected weights with the SHA-256",
        ),
        (["style", *FOX], whole[:middle], "is not a whole safetensors file"),
        (["demo"], b"", "is not a whole safetensors file"),
        (["evaluate"], None, "is missing"),
    ):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        code = main([*command, "--output", str(out)])
        captured = capsys.readouterr()
        assert_error((code, captured.out, captured.err), f"{re.escape(str(path))} {message}")
        path.touch()
    assert not out.exists()


def test_damaged_names_of_concepts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(WEIGHTS, weights)
    for function in (known_concepts, known_styles):
        monkeypatch.setattr(f"style_aligned.models.mini.{function.__name__}", partial(function, folder=weights))
    path = weights / "text_encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    code = main(["concepts"])
    captured = capsys.readouterr()
    assert_error((code, captured.out, captured.err), f"{re.escape(str(path))} is not a whole safetensors file")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
def test_a_device_that_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("style_aligned.models.mini.load_mini", None)  # nothing is loaded
    out = tmp_path / "out"
    assert main(["generate", *FOX, "a cat", "--device", "cuda", "--output", str(out)]) == 2
    assert "expected a device that is there, got 'cuda'" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("command", [["generate", *FOX, "a cat"], ["style", "a fox"], ["demo"], ["evaluate"]])
def test_interrupted_while_it_loads(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    def load_model(*_: Any, **__: Any) -> Mini:
        raise KeyboardInterrupt

    monkeypatch.setattr(library, "load_model", load_model)
    code, output, error = run(*command, "--output", tmp_path / "new.safetensors")
    assert (code, output) == (130, "")
    assert error.splitlines()[-1] == "style-aligned: interrupted"
    assert list(tmp_path.iterdir()) == []


INTERRUPT = """
import sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == {name!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
"""


@pytest.mark.parametrize("name", ["typer", "style_aligned.cli.app", "style_aligned.cli.inputs"])
@pytest.mark.parametrize(
    "entry",
    [
        "from style_aligned.cli import main; sys.exit(main(['--help']))",
        "import runpy; runpy.run_module('style_aligned.cli', run_name='__main__', alter_sys=True)",
    ],
)
def test_interrupted_while_it_starts(name: str, entry: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT.format(name=name) + entry], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "style-aligned: interrupted\n")


def test_without_standard_error_the_exit_code_tells(tmp_path: Path) -> None:
    code = "import sys; sys.stderr = None; from style_aligned.cli import main; sys.exit(main(['generate']))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 2


def test_unexpected_errors_are_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(*_: Any, **__: Any) -> Mini:
        raise RuntimeError("several\n  lines\nof it")

    monkeypatch.setattr(library, "load_model", load_model)
    command = ["generate", *FOX, "a cat", "--output", tmp_path / "out"]
    assert_error(run(*command), "RuntimeError: several lines of it .*STYLE_ALIGNED_DEBUG=1")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("STYLE_ALIGNED_DEBUG", "1")
    with pytest.raises(RuntimeError, match="several"):
        run(*command)


def raise_in_a_layer(fail: Callable[[str], Any], prompt: str = "a fox") -> ChainError:
    """Give what comes out of a chain in a chain, as in a U-Net, if one of its layers fails."""
    with pytest.raises(ChainError) as caught:
        fl.Chain(fl.Identity(), fl.Chain(fl.Lambda(fail)))(prompt)
    return caught.value


class AcceleratorError(RuntimeError):
    """What newer versions of PyTorch raise for the errors of a driver."""


def allocate(_: str) -> torch.Tensor:
    return torch.empty(2**60)


def fail_with(error: Exception) -> Callable[[str], Any]:
    def fail(_: str) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    "fail",
    [
        allocate,  # on the CPU
        fail_with(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")),
        fail_with(RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)")),
        fail_with(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
        fail_with(AcceleratorError("CUDA error: out of memory")),
        fail_with(MemoryError()),
        fail_with(OSError(errno.ENOMEM, "Cannot allocate memory")),
    ],
)
def test_out_of_memory_says_what_helps(fail: Callable[[str], Any]) -> None:
    hint = (
        "out of memory: a smaller --batch-size or --size, --dtype bfloat16 and --bank-device cpu take less of it,"
        " where the command has them"
    )
    assert describe(raise_in_a_layer(fail)) == hint
    with pytest.raises(Exception) as caught:  # noqa: PT011 (each fails in its own way)
        fail("")
    assert describe(caught.value) == hint


def test_a_prompt_about_memory_is_not_out_of_memory() -> None:
    error = raise_in_a_layer(fail_with(ValueError("got 'out of memory'")), prompt="out of memory")
    assert "out of memory" in str(error).rsplit("---", maxsplit=1)[1]
    assert describe(error) == "got 'out of memory'"
    assert "bfloat16" not in describe(raise_in_a_layer(fail_with(RuntimeError("odd")), prompt="out of memory"))


def test_an_error_in_a_layer_is_told_in_its_own_words(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["generate", *FOX, "a cat", "--output", tmp_path / "out"]
    for error, message in (
        (ValueError("got a batch of 3 rows, expected 2"), "got a batch of 3 rows, expected 2"),
        (RuntimeError("odd"), "RuntimeError: odd (STYLE_ALIGNED_DEBUG=1 shows where)"),
    ):

        def load_model(*_: Any, error: Exception = error, **__: Any) -> Mini:
            raise raise_in_a_layer(fail_with(error))

        monkeypatch.setattr(library, "load_model", load_model)
        assert run(*command) == (2, "", f"style-aligned: error: {message}\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_storage_says_what_is_kept(run: Run, icons: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    before = pictures(icons)
    write = work.write_bytes

    def write_bytes(path: Path, content: bytes) -> None:
        if path.name.startswith("004"):
            raise OSError(number, os.strerror(number), str(path))
        write(path, content)

    monkeypatch.setattr(work, "write_bytes", write_bytes)
    code, output, error = run("add", icons, "a cow", "a bird")
    assert (code, output) == (2, "")
    assert error_lines(error) == [
        f"style-aligned: error: icons/004-a-bird.png: {os.strerror(number).lower()}; 3 of 4 images are in icons, 1 of"
        " them new; style-aligned add icons draws the others"
    ]
    assert pictures(icons).keys() == {*before, "003-a-cow.png"}


def test_names_that_are_no_text(tmp_path: Path) -> None:
    code = (
        "import sys; from style_aligned.cli import run, main;"
        "run.make_style = lambda output, *_: run.typer.echo(f'{output}: …'); sys.exit(main())"
    )
    output = str(tmp_path / "a\udcff.safetensors")
    command = [sys.executable, "-c", code, "style", "a fox", "--output", output]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"a\\udcff.safetensors: \\u2026\n")
