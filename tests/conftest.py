import pytest
import torch

from style_aligned import layers
from style_aligned.mini import Mini, MiniAutoencoder, MiniDoubleTextEncoder, MiniUNet

WORDS = ["a", "cat", "dog", "fox", "ink", "neon", "rocket", "sign"]


def build_random_mini() -> Mini:
    """The embedded model with random weights, in which every layer counts."""
    torch.manual_seed(0)
    model = Mini(unet=MiniUNet(), lda=MiniAutoencoder(), clip_text_encoder=MiniDoubleTextEncoder(WORDS))
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


@pytest.fixture(params=["sums", "batch normalization"])
def both_ways_to_normalize(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have AdaIN on the CPU normalize small features, such as those of tests, by its way for large ones too."""
    if request.param != "sums":
        monkeypatch.setattr(layers, "SMALL_ROW", 0)
