"""Styles, sets and the evaluation on another device than the CPU: nothing is left behind, nothing is mixed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from refiners.foundationals.latent_diffusion.solvers import DPMSolver, LCMSolver, Solver
from torch import Tensor

from style_aligned import Style, generate
from style_aligned.evaluation.classifier import load_classifier
from style_aligned.evaluation.sets import SETTINGS, VARIANTS, evaluate
from style_aligned.models.mini import Mini, load_mini
from style_aligned.sampling.generation import generate_unaligned
from tests.second_device import OnDevice, second_device

PROMPTS = ["a rocket, neon sign", "a cat"]


@pytest.fixture
def device() -> Iterator[str]:
    with second_device("style_aligned.models.denoising", "style_aligned.evaluation.sets") as name:
        yield name


def test_devices_are_not_mixed(device: str) -> None:
    x = torch.arange(6.0, device=device).view(2, 3)
    assert isinstance(x, OnDevice)
    assert x.mul_(2).sum().item() == 30
    assert x.cpu().tolist() == [[0, 2, 4], [6, 8, 10]]
    with pytest.raises(RuntimeError, match="same device"):
        x.add(torch.ones(3))
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat((torch.ones(2, 3), x))
    with pytest.raises(RuntimeError, match="same device"):
        torch.stack((torch.tensor(1.0), x[0, 0]))
    with pytest.raises(RuntimeError, match="same device"):
        torch.tensor(1.0).add_(x[0, 0])
    assert (torch.tensor(2.0) * x)[torch.tensor(0)].cpu().tolist() == [0, 4, 8]
    with pytest.raises(RuntimeError, match="expected a generator of meta, got one of cpu"):
        torch.randn(2, device=device, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="not supported for tensor subclasses"):
        x.numpy()
    with torch.autocast(device, torch.bfloat16):
        assert torch.nn.functional.linear(x, x).dtype == torch.bfloat16
        assert x.bfloat16().softmax(dim=-1).dtype == torch.float32
    assert torch.nn.functional.linear(x, x).dtype == torch.float32


def latents_of(model: Mini, solver: type[Solver], bank_device: str | None, path: Path) -> Tensor:
    """The latents of a style that was saved, of a set in it, and of an unaligned image."""
    model.solver = solver(30, device=model.device)
    style = Style.from_prompt(
        model, "a fox, neon sign", num_inference_steps=2, size=(64, 64), options={"scale": 0.8, "shift": 0.25}
    )
    style.save(path)
    samples = [
        *generate(model, Style.load(path), PROMPTS, batch_size=1, bank_device=bank_device),
        *generate_unaligned(model, style, PROMPTS[:1]),
    ]
    assert all(sample.image.size == (64, 64) for sample in samples)
    return torch.cat([style.latents[-1:].cpu(), *(sample.latents.cpu() for sample in samples)])


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize(("solver", "bank_device"), [(DPMSolver, "cpu"), (LCMSolver, None)])
def test_styles_and_sets(device: str, solver: type[Solver], bank_device: str | None, tmp_path: Path) -> None:
    expected = latents_of(load_mini(), solver, None, tmp_path / "cpu.safetensors")
    path = tmp_path / "device.safetensors"
    torch.testing.assert_close(latents_of(load_mini(device), solver, bank_device, path), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.slow
def test_evaluation(device: str) -> None:
    arguments: dict[str, Any] = {
        "sets": 1, "set_size": 2, "steps": 1, "autocast": True, "settings": SETTINGS[:1], "variants": VARIANTS[:3]
    }  # fmt: skip
    expected = evaluate(load_mini(), classifier=load_classifier(), **arguments)
    results = evaluate(load_mini(device), classifier=load_classifier(device=device), **arguments)
    assert len(results.rows) == len(expected.rows) > 1
    for row, other in zip(results.rows, expected.rows, strict=True):
        assert (row.style.value, row.concept.value) == (other.style.value, other.concept.value)
        assert row.palette_distance.value == pytest.approx(other.palette_distance.value, rel=0.05)


def test_a_solver_on_another_device_is_refused(device: str) -> None:
    model = load_mini(device)
    model.solver = DPMSolver(30)
    with pytest.raises(ValueError, match="expected a solver on meta, as the model, got DPMSolver on cpu"):
        Style.from_prompt(model, "a fox", num_inference_steps=2)
