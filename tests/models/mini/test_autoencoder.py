"""The autoencoder, through Refiners' own interface."""

import pytest
import torch
from PIL import Image
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.model import SDXLAutoencoder

from style_aligned.models.mini import MiniAutoencoder


@pytest.fixture(scope="module")
def autoencoder() -> MiniAutoencoder:
    torch.manual_seed(0)
    return MiniAutoencoder()


def test_is_small_and_of_sdxl(autoencoder: MiniAutoencoder) -> None:
    assert isinstance(autoencoder, SDXLAutoencoder)
    assert sum(parameter.numel() for parameter in autoencoder.parameters()) < 900_000


@torch.no_grad()
def test_round_trip_keeps_sizes(autoencoder: MiniAutoencoder) -> None:
    image = Image.new("RGB", (64, 128), "teal")
    latents = autoencoder.image_to_latents(image)
    assert latents.shape == (1, 4, 16, 8)
    assert autoencoder.latents_to_image(latents).size == (64, 128)
    pair = autoencoder.images_to_latents([image, image])
    assert pair.shape == (2, 4, 16, 8)
    assert [decoded.size for decoded in autoencoder.latents_to_images(pair)] == [(64, 128)] * 2


@torch.no_grad()
def test_scale(autoencoder: MiniAutoencoder) -> None:
    x = torch.rand(1, 3, 32, 32)
    assert autoencoder.encoder_scale == 0.5
    assert torch.allclose(autoencoder.encode(x), 0.5 * autoencoder.encoder(x))
    z = torch.randn(1, 4, 4, 4)
    assert torch.allclose(autoencoder.decode(z), autoencoder.decoder(2 * z))


@torch.no_grad()
def test_decoder_places_pixels_in_order(autoencoder: MiniAutoencoder) -> None:
    # a change of one corner's latent changes that corner most
    z = torch.zeros(1, 4, 8, 8)
    other = z.clone()
    other[..., 0, 7] = 3
    change = (autoencoder.decode(other) - autoencoder.decode(z)).abs().mean(dim=1)[0]
    assert change[:16, -16:].mean() > 3 * change[-32:, :32].mean()


@pytest.mark.parametrize(("height", "width"), [(60, 64), (64, 4)])
def test_refuses_other_sizes(autoencoder: MiniAutoencoder, height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"divisible by 8, got {height}x{width}"):
        autoencoder.encode(torch.rand(1, 3, height, width))
