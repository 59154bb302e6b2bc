import os
from pathlib import Path

import jaxtyping
import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion.solvers import DDIM

from style_aligned.models.mini import Mini, MiniAutoencoder, MiniDoubleTextEncoder, MiniUNet
from style_aligned.styles.style import Style

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores

COMPUTING = {"adapter", "evaluation", "styles"}
"""The rooms in whose tests shapes are checked at every call. It doubles the time of a pass through a U-Net."""

WORDS = ["a", "cat", "dog", "fox", "ink", "neon", "rocket", "sign"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    room = item.path.relative_to(Path(__file__).parent).parts[0]
    jaxtyping.config.update("jaxtyping_disable", room not in COMPUTING)


def build_random_mini() -> Mini:
    """The embedded model, narrower, with one transformer a level and random weights, in which every layer counts."""
    torch.manual_seed(0)
    unet = MiniUNet(channels=(16, 32, 48))
    for name, numbers in (("DownBlocks", (5, 8)), ("UpBlocks", (1, 2, 4, 5))):
        for number in numbers:
            block = unet.layer((name, number), fl.Chain)
            block.remove(block.layer("SDXLCrossAttention", fl.Chain))
    model = Mini(unet=unet, lda=MiniAutoencoder(), clip_text_encoder=MiniDoubleTextEncoder(WORDS))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


@pytest.fixture(scope="session")
def random_mini() -> Mini:
    return build_random_mini()


@pytest.fixture
def fresh_mini() -> Mini:
    """One of its own, for what Refiners can do only once to a U-Net: self-attention guidance leaves contexts behind."""
    return build_random_mini()


@pytest.fixture
def model(random_mini: Mini) -> Mini:
    """The same, with the solver and the guidance that it has at first."""
    random_mini.solver = DDIM(num_inference_steps=30)
    random_mini.classifier_free_guidance = True
    return random_mini


@pytest.fixture
def style(model: Mini) -> Style:
    """A style with a setting of its own in everything."""
    return Style.from_prompt(
        model, "a fox, neon sign", negative_prompt="ink", seed=3, num_inference_steps=3, condition_scale=2.5,
        size=(64, 128), options={"scale": 0.8, "shift": 0.25},
    ).complete()  # fmt: skip


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> str:
    """A GPU that computes in float32 where it is asked to. Without one, the test is skipped."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return "cuda"
