"""The same images, scores and training on a GPU as on the CPU. Without a GPU these tests are skipped."""

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

PROMPTS = ["a rocket, neon sign", "a cat"]


def latents_of(model: Mini, solver: type[Solver], bank_device: str | None, path: Path) -> Tensor:
    """The latents of a style that was saved, of a set in it, and of an unaligned image."""
    model.solver = solver(30, device=model.device)
    style = Style.from_prompt(
        model, "a fox, neon sign", num_inference_steps=2, size=(64, 64), options={"scale": 0.8, "shift": 0.25}
    )
    style.save(path)
    samples = [
        *generate(model, Style.load(path), PROMPTS, batch_size=1, bank_device=bank_device),
        *generate(model, style, PROMPTS[:1], aligned=False),
    ]
    assert all(sample.image.size == (64, 64) for sample in samples)
    return torch.cat([style.latents[-1:].cpu(), *(sample.latents.cpu() for sample in samples)])


@torch.no_grad()
@pytest.mark.parametrize(("solver", "bank_device"), [(DPMSolver, "cpu"), (LCMSolver, None)])
def test_styles_and_sets(accelerator: str, solver: type[Solver], bank_device: str | None, tmp_path: Path) -> None:
    expected = latents_of(load_mini(), solver, None, tmp_path / "cpu.safetensors")
    latents = latents_of(load_mini(accelerator), solver, bank_device, tmp_path / "accelerator.safetensors")
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_evaluation(accelerator: str) -> None:
    arguments: dict[str, Any] = {
        "sets": 1, "set_size": 2, "steps": 1, "autocast": True, "settings": SETTINGS[:1], "variants": VARIANTS[:3]
    }  # fmt: skip
    expected = evaluate(load_mini(), classifier=load_classifier(), **arguments)
    results = evaluate(load_mini(accelerator), classifier=load_classifier(device=accelerator), **arguments)
    assert len(results.rows) == len(expected.rows) > 1
    for row, other in zip(results.rows, expected.rows, strict=True):
        assert (row.style.value, row.concept.value) == (other.style.value, other.concept.value)
        assert row.palette_distance.value == pytest.approx(other.palette_distance.value, rel=0.05)
