"""Whole runs of the training: from data to weights, on a GPU too, and interrupted."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from scripts.mini_training import autoencoder_stage
from scripts.mini_training.autoencoder_stage import AutoencoderSettings, train_autoencoder
from scripts.mini_training.batches import Batches
from scripts.mini_training.checkpoints import load_tensors
from scripts.mini_training.dataset import Drawings
from scripts.mini_training.export import export_autoencoder
from scripts.mini_training.latents import encode_drawings
from scripts.mini_training.parallel import Workers
from scripts.mini_training.samples import Sampler
from scripts.mini_training.unet_stage import UNetSettings, train_unet
from scripts.train_mini import main
from style_aligned.models.mini import MiniAutoencoder, load_mini


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with some drawings."""
    rng = np.random.default_rng(0)
    records = [
        {"concept": concept, "style": style, "foundry": "noto", "factors": {}, "split": split}
        for concept in ("fox", "cat")
        for style in ("neon sign", "pixel art")
        for split in ("train", "train", "held_out_cell")
    ]
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "images.npy", rng.integers(0, 255, (len(records), 256, 256, 3), dtype=np.uint8))
    index = {"concepts": ["fox", "cat"], "styles": ["neon sign", "pixel art"], "records": records}
    (data / "index.json").write_text(json.dumps(index))
    return data


def train(data: Path, run: Path, device: str) -> None:
    """Train a model for some steps, interrupted once, and look at what comes out."""
    command = ["--data", str(data), "--output", str(run), "--threads", "2", "--device", device, "--batch-size", "4"]
    main([*command, "--autoencoder-steps", "3", "--steps", "3"])
    first = load_file(run / "export" / "unet.safetensors")
    main([*command, "--stage", "unet", "--steps", "6"])
    with pytest.raises(ValueError, match=r"expected --steps of at least 6, .* got 5"):
        main([*command, "--stage", "unet", "--steps", "5"])
    main([*command, "--stage", "export"])
    second = load_file(run / "export" / "unet.safetensors")
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert "resumed" in (run / "unet.log").read_text()
    for name in ("autoencoder-000003", "unet-000003", "unet-000006"):
        with Image.open(run / "sheets" / f"{name}.png") as sheet:
            assert sheet.width > 300
    model = load_mini(folder=run / "export")
    assert model.clip_text_encoder.unknown_words("a fox, neon zebra") == ["zebra"]
    assert sum(path.stat().st_size for path in (run / "export").iterdir()) < 40_000_000


@dataclass
class QuickUNetSettings(UNetSettings):
    """With so high a rate from the first step on that weights move."""

    warmup: int = 1


def train_quickly(data: Path, run: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr("scripts.mini_training.unet_stage.Sampler", partial(Sampler, steps=2))  # it is slow
    monkeypatch.setattr("scripts.train_mini.UNetSettings", QuickUNetSettings)
    train(data, run, device)


@pytest.mark.slow
def test_everything_from_data_to_weights(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_quickly(data, tmp_path / "run", monkeypatch, "cpu")


@pytest.mark.slow
def test_everything_on_an_accelerator(
    accelerator: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_quickly(data, tmp_path / "run", monkeypatch, accelerator)


@pytest.mark.slow
def test_what_is_held_out_does_not_change_the_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_both(drawings: Drawings, run: Path) -> dict[str, torch.Tensor]:
        run.mkdir()
        autoencoder = train_autoencoder(drawings, run, AutoencoderSettings(steps=2), "cpu", Workers(1))
        export_autoencoder(autoencoder, run / "export")
        encode_drawings(autoencoder, drawings, run / "latents.safetensors")
        train_unet(drawings, run, QuickUNetSettings(steps=2, batch_size=4), "cpu", Workers(1))
        return {**autoencoder.state_dict(), **load_tensors(run / "unet.ckpt.safetensors")[0]}

    monkeypatch.setattr("scripts.mini_training.unet_stage.Sampler", Mock())
    drawings = Drawings.load(data)
    others = {split: drawings.images.copy() for split in ("train", "held_out_cell")}
    for split, images in others.items():
        images[drawings.split(split)] = 128
    weights = train_both(drawings, tmp_path / "as they are")
    for split, is_same in (("held_out_cell", True), ("train", False)):
        changed = train_both(replace(drawings, images=others[split]), tmp_path / split)
        assert all(torch.equal(weights[name], changed[name]) for name in weights) == is_same


@pytest.mark.slow
def test_an_interrupted_training_of_the_unet(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.mini_training.unet_stage.Sampler", Mock())
    drawings = Drawings.load(data)
    encode_drawings(MiniAutoencoder(), drawings, tmp_path / "whole" / "latents.safetensors")
    export_autoencoder(MiniAutoencoder(), tmp_path / "whole" / "export")
    shutil.copytree(tmp_path / "whole", tmp_path / "interrupted")
    settings = UNetSettings(steps=4, batch_size=4, save_minutes=0, learning_rate=0.01, warmup=1)

    def train(folder: str) -> None:
        train_unet(drawings, tmp_path / folder, settings, "cpu", Workers(1))

    assert_same_if_interrupted(train, tmp_path, "unet", Batches, "next")


@pytest.mark.slow
def test_an_interrupted_training_of_the_autoencoder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = AutoencoderSettings(steps=4, save_minutes=0)

    def train(folder: str) -> None:
        (tmp_path / folder).mkdir(exist_ok=True)
        train_autoencoder(Drawings.load(data), tmp_path / folder, settings, "cpu", Workers(1))

    assert_same_if_interrupted(train, tmp_path, "autoencoder", autoencoder_stage, "random_batch")


def assert_same_if_interrupted(
    train: Callable[[str], None], folder: Path, stage: str, source: object, function: str
) -> None:
    """Assert that a training comes to the same, to the last bit, if the source of its batches is interrupted twice."""
    train("whole")
    original = getattr(source, function)
    for steps in (1, 2):
        left = iter(range(steps))

        def stop(*arguments: Any, left: Iterator[int] = left, **options: Any) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(source, function, stop)
            with pytest.raises(KeyboardInterrupt):
                train("interrupted")
    train("interrupted")
    assert (folder / "interrupted" / f"{stage}.log").read_text().count("resumed at step") == 2
    checkpoints = (folder / name / f"{stage}.ckpt.safetensors" for name in ("whole", "interrupted"))
    whole, interrupted = (load_tensors(checkpoint)[0] for checkpoint in checkpoints)
    assert whole.keys() == interrupted.keys()
    assert all(torch.equal(whole[name], interrupted[name]) for name in whole)
