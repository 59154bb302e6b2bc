"""From a style to images: the one denoising loop."""

from style_aligned.sampling.generation import generate
from style_aligned.sampling.samples import Sample, Samples

__all__ = ["Sample", "Samples", "generate"]
