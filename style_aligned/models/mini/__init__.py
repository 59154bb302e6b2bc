"""The embedded model: small enough to ship, shaped as SDXL, so that everything runs offline."""

from style_aligned.models.mini.autoencoder import MiniAutoencoder
from style_aligned.models.mini.model import Mini, known_concepts, known_styles, load_mini
from style_aligned.models.mini.text_encoder import MiniDoubleTextEncoder, MiniTokenizer
from style_aligned.models.mini.unet import MiniUNet

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
