import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from refiners.fluxion.utils import load_from_safetensors
from safetensors import safe_open
from torch import Tensor

from style_aligned.models.checkpoints import CheckpointError, convert_checkpoint, load_model
from tests.models.checkpoints.narrow import NARROW
from tests.models.checkpoints.test_sources import altered, same

PARTS = ("unet", "lda", "clip_text_encoder")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    """Stable Diffusion 1.5 alone, which is faster, unless a test asks for both."""
    return getattr(request, "param", "1")


def data(file: Path) -> bytes:
    """The tensors of a file, without its header."""
    content = file.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.mark.parametrize("kind", ["xl", "1"], indirect=True)
def test_both_forms_convert_to_the_same_bytes(folder: Path, single_file: Path, tmp_path: Path) -> None:
    first = convert_checkpoint(folder, tmp_path / "new" / "first").target
    second = convert_checkpoint(single_file, tmp_path / "second").target
    again = convert_checkpoint(first, tmp_path / "again").target
    assert sorted(file.name for file in first.iterdir()) == sorted(f"{part}.safetensors" for part in PARTS)
    for part in PARTS:
        assert data(first / f"{part}.safetensors") == data(second / f"{part}.safetensors")
        assert data(first / f"{part}.safetensors") == data(again / f"{part}.safetensors")


def test_refiners_itself_loads_what_was_converted(folder: Path, kind: str, tmp_path: Path) -> None:
    target = convert_checkpoint(folder, tmp_path / "refiners").target
    model, expected = NARROW[kind].build(), load_model(folder)
    for part in PARTS:
        state = load_from_safetensors(target / f"{part}.safetensors")
        getattr(model, part).load_state_dict(state, assign=True)
        same(getattr(model, part), getattr(expected, part))


def test_half_and_metadata(single_file: Path, tmp_path: Path) -> None:
    target = convert_checkpoint(single_file, tmp_path / "half", half=True).target
    same(load_model(target).unet, load_model(single_file, dtype=torch.float16).unet.to(dtype=torch.float32))
    for part in PARTS:
        file = target / f"{part}.safetensors"
        assert {tensor.dtype for tensor in load_from_safetensors(file).values()} == {torch.float16}
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        assert metadata["source"] == single_file.name
        assert json.loads(metadata["options"]) == {"half": True}
        digest = hashlib.sha256(single_file.read_bytes()).hexdigest()
        assert json.loads(metadata["sha256"]) == {single_file.name: digest}


def test_a_dry_run_checks_everything_and_writes_nothing(folder: Path, tmp_path: Path, kind: str) -> None:
    conversion = convert_checkpoint(folder, tmp_path / "target", dry_run=True)
    assert not list(tmp_path.iterdir())
    name = NARROW[kind].name
    assert str(conversion).startswith(
        f"{folder}: {name}, diffusers format\n  {tmp_path / 'target' / 'unet'}.safetensors: "
    )
    assert f"{len(conversion.plan.unused)} tensors left out: " in str(conversion)
    copy = altered(folder, tmp_path, {"vae.quant_conv.bias": None})
    with pytest.raises(CheckpointError, match=r"'vae\.quant_conv\.bias' is missing"):
        convert_checkpoint(copy, tmp_path / "target", dry_run=True)


def test_progress(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    conversion = convert_checkpoint(
        folder, tmp_path / "target", progress=lambda done, total: seen.append((done, total))
    )
    assert seen == sorted(seen)
    assert len(seen) == len(conversion.plan.weights)
    assert seen[-1] == (conversion.nbytes, conversion.nbytes)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left"), OSError(5, "I/O error")])
def test_an_interruption_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def progress(done: int, total: int) -> None:
        assert (tmp_path / "new" / "target.part" / "unet.safetensors").exists()
        if done > total / 2:
            raise error

    expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="the disk is full|cannot be written" if isinstance(error, OSError) else None):
        convert_checkpoint(folder, tmp_path / "new" / "target", progress=progress)
    assert not list(tmp_path.iterdir())


def test_a_conversion_that_was_killed_is_never_loaded_and_gives_way_to_the_next(folder: Path, tmp_path: Path) -> None:
    part_folder = tmp_path / "target.part"
    part_folder.mkdir()
    (part_folder / "unet.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_model(tmp_path / "target")
    convert_checkpoint(folder, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    (tmp_path / "other.part").mkdir()
    (tmp_path / "other.part" / "mine.txt").touch()
    with pytest.raises(CheckpointError, match=r"other\.part: in the way, and not of a conversion"):
        convert_checkpoint(folder, tmp_path / "other")
    assert (tmp_path / "other.part" / "mine.txt").exists()


def test_a_target_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(CheckpointError, match="full: exists already; expected a new folder"):
        convert_checkpoint(folder, tmp_path / "full")
    with pytest.raises(CheckpointError, match="file: exists already; expected a new folder"):
        convert_checkpoint(folder, tmp_path / "file")
    with pytest.raises(CheckpointError, match="file is not a folder that can be written"):
        convert_checkpoint(folder, tmp_path / "file" / "inside")
    usage = shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", {tmp_path: usage}.get)
    with pytest.raises(CheckpointError, match=r"target: the disk is too full: 0\.0\d GB are needed, 0\.00 GB are free"):
        convert_checkpoint(folder, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_half_precision_that_overflows(folder: Path, tmp_path: Path) -> None:
    copy = altered(folder, tmp_path, {"vae.quant_conv.bias": torch.full((8,), 1e5)})
    with pytest.raises(CheckpointError, match=r"'quant_conv\.bias' exceeds the range of float16; convert without it"):
        convert_checkpoint(copy, tmp_path / "target", half=True)
    assert not (tmp_path / "target").exists()
    assert not (tmp_path / "target.part").exists()


def test_another_architecture_than_asked_for(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Stable Diffusion 1\.5; expected Stable Diffusion XL"):
        convert_checkpoint(folders["1"], tmp_path / "target", architecture="Stable Diffusion XL")
    with pytest.raises(CheckpointError, match="mini: the embedded model is in Refiners' format already"):
        convert_checkpoint("mini", tmp_path / "target")


def run_script(name: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, **options)


def test_the_scripts_refuse_with_exit_code_2(tmp_path: Path, tensors: dict[str, dict[str, Tensor]]) -> None:
    torch.save({}, tmp_path / "model.ckpt")
    for script in ("convert_sdxl.py", "convert_sd15.py"):
        result = run_script(script, "--from", tmp_path / "model.ckpt", "--to", tmp_path / "target")
        assert result.returncode == 2
        assert result.stderr.startswith(f"error: {tmp_path / 'model.ckpt'}: a pickle")
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "target").exists()


NARROW_MAIN = """
import runpy, sys
from style_aligned.models.checkpoints import sources
from tests.models.checkpoints.narrow import NARROW_1, NARROW_XL
sources.STABLE_DIFFUSION_XL, sources.STABLE_DIFFUSION_1 = NARROW_XL, NARROW_1
sys.argv = sys.argv[1:]
sys.path.insert(0, "scripts")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "script"), [pytest.param("xl", "convert_sdxl.py", marks=pytest.mark.slow), ("1", "convert_sd15.py")]
)
def test_the_scripts_convert(name: str, script: str, single_files: dict[str, Path], tmp_path: Path) -> None:
    arguments = [f"scripts/{script}", "--from", str(single_files[name]), "--to", str(tmp_path / "target"), "--half"]
    command = [sys.executable, "-c", NARROW_MAIN, *arguments]
    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert f"{NARROW[name].name}, original format" in dry.stdout
    assert not (tmp_path / "target").exists()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    assert load_from_safetensors(tmp_path / "target" / "lda.safetensors")
    expected = convert_checkpoint(single_files[name], tmp_path / "expected", half=True).target
    for part in PARTS:
        assert data(tmp_path / "target" / f"{part}.safetensors") == data(expected / f"{part}.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_control_c_leaves_nothing(single_files: dict[str, Path], tmp_path: Path) -> None:
    slow = NARROW_MAIN.replace(
        "sys.argv = ",
        "from style_aligned.models.checkpoints.plan import Weight\nimport time\nread = Weight.tensor\n"
        "Weight.tensor = lambda self, r: (time.sleep(0.05), read(self, r))[1]\nsys.argv = ",
        1,
    )
    arguments = ["scripts/convert_sd15.py", "--from", str(single_files["1"]), "--to", str(tmp_path / "target")]
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    )
    for _ in range(2400):
        if (tmp_path / "target.part" / "unet.safetensors").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert not list(tmp_path.iterdir())


def test_targets_that_a_folder_cannot_replace(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present, link, broken = tmp_path / "present", tmp_path / "link", tmp_path / "broken"
    present.mkdir()
    link.symlink_to(present)
    broken.symlink_to(tmp_path / "none")
    monkeypatch.chdir(present)
    for target in (".", present, link, broken):
        with pytest.raises(CheckpointError, match="a link, a disk or the present folder; expected a new one"):
            convert_checkpoint(folder, target, dry_run=target == ".")
    assert {path.name for path in tmp_path.iterdir()} == {"present", "link", "broken"}
    monkeypatch.chdir(tmp_path)
    assert (convert_checkpoint(folder, "present").target / "unet.safetensors").is_file()  # an empty one


def test_a_source_where_the_target_is_to_be_written(folder: Path, tmp_path: Path) -> None:
    part = convert_checkpoint(folder, tmp_path / "new.part").target
    files = {path.name: path.read_bytes() for path in part.iterdir()}
    with pytest.raises(CheckpointError, match=r"new: .*new\.part holds the source; expected another folder"):
        convert_checkpoint(part, tmp_path / "new")
    assert {path.name: path.read_bytes() for path in part.iterdir()} == files


def test_a_source_whose_name_is_no_text(single_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a\udcff.safetensors"
    shutil.copy(single_file, copy)
    target = convert_checkpoint(copy, tmp_path / "new").target
    with safe_open(target / "unet.safetensors", framework="pt") as file:
        assert file.metadata()["source"] == "a?.safetensors"
