import pytest
import torch

from style_aligned.mini import Mini, MiniAutoencoder, MiniDoubleTextEncoder, MiniUNet

WORDS = ["a", "cat", "dog", "fox", "ink", "neon", "rocket", "sign"]


@pytest.fixture(scope="session")
def random_mini() -> Mini:
    """The embedded model with random weights, in which every layer counts."""
    torch.manual_seed(0)
    model = Mini(unet=MiniUNet(), lda=MiniAutoencoder(), clip_text_encoder=MiniDoubleTextEncoder(WORDS))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model
