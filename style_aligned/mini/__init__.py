"""The embedded model: small enough to ship, shaped as SDXL, so that everything runs offline."""

from .autoencoder import MiniAutoencoder
from .model import Mini, known_concepts, known_styles, load_mini
from .text_encoder import MiniDoubleTextEncoder, MiniTokenizer
from .unet import MiniUNet

__all__ = [
    "Mini",
    "MiniAutoencoder",
    "MiniDoubleTextEncoder",
    "MiniTokenizer",
    "MiniUNet",
    "known_concepts",
    "known_styles",
    "load_mini",
]
