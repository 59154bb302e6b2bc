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
from types import ModuleType
from typing import Any

import pytest
import refiners.fluxion.layers as fl
import torch
from refiners.fluxion.layers.chain import ChainError

from style_aligned.cli import library, main
from style_aligned.cli.console import describe
from style_aligned.models.mini import Mini, known_concepts, known_styles, load_mini
from style_aligned.models.mini.model import WEIGHTS
from tests.cli.conftest import FOX, Run, assert_error


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
        (["generate", *FOX, "--prompt", "a cat", "--seed", str(10**400)], "expected --seed .* of at most 4294967295"),
        (["generate", *FOX, "--prompt", "a cat", "--batch-size", "0"], "--batch-size"),
        (
            ["generate", *FOX, "--prompt", "a cat", "--scale", "-1"],
            "expected --scale to be a finite number between 0 and 1000, got -1",
        ),
        (["generate", *FOX, "--prompt", "a cat", "--scale", "nan"], "expected --scale to be a finite number"),
        (
            ["generate", *FOX, "--prompt", "a cat", "--shift", "inf"],
            "expected --shift to be a finite number .*, got inf",
        ),
        (["generate", *FOX, "--prompt", "a cat", "--size", "100"], "multiples of 8 between 64 and 8192 .* got 100x100"),
        (["generate", *FOX, "--prompt", "a cat", "--size", "64x0"], "multiples of 8"),
        (["generate", *FOX, "--prompt", "a cat", "--size", "-64"], "expected --size to be WIDTHxHEIGHT"),
        (["generate", *FOX, "--prompt", "a cat", "--size", "999999"], "multiples of 8 between 64 and 8192"),
        (["generate", *FOX, "--prompt", "a cat", "--device", "toaster"], "expected --device to be cpu, cuda"),
        (["generate", *FOX, "--prompt", "a cat", "--dtype", "float8"], "--dtype"),
        (["generate", *FOX, "--prompts", "missing.txt"], "missing.txt: no such file"),
        (["generate", *FOX, "--prompts", "-", "--prompts", "-"], "expected --prompts - once at most, got it 2 times"),
        (["generate", "--style", "missing.safetensors", "--prompt", "a cat"], "missing.safetensors: no such file"),
        *(
            (["generate", "--style", "x", option, value, "--prompt", "a cat"], f"expected no {option} beside --style")
            for option, value in (("--steps", "3"), ("--size", "64"), ("--guidance", "3"), ("--negative", "ink"))
        ),
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


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours(run: Run, loads: list[Any], tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    for command in (
        ["generate", *FOX, "--prompt", "a cat"],
        ["style", "make", "--reference", "a fox"],
        ["demo"],
        ["evaluate"],
    ):
        output = tmp_path / "new"
        assert_error(run(*command, "--output", output), f"expected --output {output} to be writable, got the folder")
    assert loads == []


@pytest.mark.parametrize("name", ["unet.safetensors", "autoencoder.safetensors", "text_encoder.safetensors"])
def test_damaged_weights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    weights, out = tmp_path / "weights", tmp_path / "out"
    shutil.copytree(WEIGHTS, weights)
    monkeypatch.setattr("style_aligned.models.mini.load_mini", partial(load_mini, folder=weights))
    path = weights / name
    whole = path.read_bytes()
    middle = len(whole) // 2
    for command, content, message in (
        (
            ["generate", *FOX, "--prompt", "a cat"],
            whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "is corrupted: expected weights with the SHA-256",
        ),
        (["style", "make", *FOX], whole[:middle], "is not a whole safetensors file"),
        (["demo"], b"", "is not a whole safetensors file"),
        (["evaluate"], None, "is missing: the embedded model's weights are not complete"),
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
    module = ModuleType("style_aligned.models.checkpoints")
    vars(module)["load_model"] = None
    monkeypatch.setitem(sys.modules, "style_aligned.models.checkpoints", module)
    out = tmp_path / "out"
    assert main(["generate", *FOX, "--prompt", "a cat", "--device", "cuda", "--output", str(out)]) == 2
    assert "expected a device that is there, got 'cuda'" in capsys.readouterr().err
    assert not out.exists()


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
    def load_model(name: str, *, device: str, dtype: str) -> Mini:
        raise RuntimeError("several\n  lines\nof it")

    monkeypatch.setattr(library, "load_model", load_model)
    command = ["generate", *FOX, "--prompt", "a cat", "--output", tmp_path / "out"]
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
    command = ["generate", *FOX, "--prompt", "a cat", "--output", tmp_path / "out"]
    for error, message in (
        (ValueError("got a batch of 3 rows, expected 2"), "got a batch of 3 rows, expected 2"),
        (RuntimeError("odd"), "RuntimeError: odd (STYLE_ALIGNED_DEBUG=1 shows where)"),
    ):

        def load_model(name: str, *, error: Exception = error, **_: str) -> Mini:
            raise raise_in_a_layer(fail_with(error))

        monkeypatch.setattr(library, "load_model", load_model)
        assert run(*command) == (2, "", f"style-aligned: error: {message}\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES])
@pytest.mark.parametrize("command", ["generate", "style make"])
def test_full_storage_leaves_what_was_finished(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, number: int
) -> None:
    def load_model(name: str, **_: str) -> Mini:
        raise OSError(number, os.strerror(number), "a.png")

    monkeypatch.setattr(library, "load_model", load_model)
    prompts = ["--prompt", "a cat"] if command == "generate" else []
    kept = "; what was finished is kept" if prompts and number != errno.EACCES else ""
    expected = f"style-aligned: error: a.png: {os.strerror(number).lower()}{kept}\n"
    assert run(*command.split(), *FOX, *prompts, "--output", tmp_path / "out") == (2, "", expected)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    code = (
        "import sys; from style_aligned.cli import run, main;"
        "run.make_style = lambda output, *_: run.typer.echo(f'{output}: …'); sys.exit(main())"
    )
    output = str(tmp_path / "a\udcff")
    command = [sys.executable, "-c", code, "style", "make", "--reference", "a fox", "--output", output]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"a\\udcff: \\u2026\n")
