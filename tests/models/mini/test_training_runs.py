"""Whole runs of the training: from data to weights, on another device too, and interrupted."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity

from scripts.mini_training import autoencoder_stage
from scripts.mini_training.autoencoder_stage import AutoencoderSettings, train_autoencoder
from scripts.mini_training.checkpoints import load_tensors
from scripts.mini_training.dataset import Drawings
from scripts.mini_training.export import export_autoencoder
from scripts.mini_training.latents import encode_drawings
from scripts.mini_training.parallel import Workers
from scripts.mini_training.samples import Sampler
from scripts.mini_training.unet_stage import Batches, UNetSettings, train_unet
from scripts.train_mini import main
from style_aligned.models.mini import MiniAutoencoder, load_mini
from tests.second_device import second_device


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
    assert sum(path.stat().st_size for path in (run / "export").iterdir()) < 16_000_000


@dataclass
class QuickUNetSettings(UNetSettings):
    """With so high a rate from the first step on that weights move."""

    warmup: int = 1


def losses(run: Path) -> list[float]:
    """The losses in a run's log."""
    return [float(loss) for loss in re.findall(r" loss ([\d.]+)", (run / "unet.log").read_text())]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")  # the second device is called meta
def test_everything_from_data_to_weights(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.mini_training.unet_stage.Sampler", partial(Sampler, steps=2))  # it is slow
    monkeypatch.setattr("scripts.train_mini.UNetSettings", QuickUNetSettings)
    train(data, tmp_path / "cpu", "cpu")
    adam = import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", Mock())  # it has what the CPU has
    with second_device() as device:
        train(data, tmp_path / "second", device)
    assert len(losses(tmp_path / "cpu")) == 3
    assert losses(tmp_path / "second") == pytest.approx(losses(tmp_path / "cpu"), rel=0.02)
    ours, others = (load_tensors(tmp_path / name / "unet.ckpt.safetensors")[0] for name in ("second", "cpu"))
    gradients = [name for name in ours if name.startswith("optimizer.exp_avg.")]
    assert len(gradients) > 300
    ours, others = (torch.cat([tensors[name].flatten() for name in gradients]) for tensors in (ours, others))
    assert cosine_similarity(ours, others, dim=0) > 0.99


@pytest.mark.slow
def test_an_interrupted_training_of_the_unet(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.mini_training.unet_stage.Sampler", Mock())
    drawings = Drawings.load(data)
    encode_drawings(MiniAutoencoder(), drawings, tmp_path / "whole" / "latents.safetensors")
    export_autoencoder(MiniAutoencoder(), tmp_path / "whole" / "export")
    shutil.copytree(tmp_path / "whole", tmp_path / "interrupted")
    settings = UNetSettings(steps=6, batch_size=4, save_minutes=0, learning_rate=0.01, warmup=1)

    def train(folder: str) -> None:
        train_unet(drawings, tmp_path / folder, settings, "cpu", Workers(1))

    assert_same_if_interrupted(train, tmp_path, "unet", Batches, "next")


@pytest.mark.slow
def test_an_interrupted_training_of_the_autoencoder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = AutoencoderSettings(steps=6, save_minutes=0)

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
    for steps in (2, 3):
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
