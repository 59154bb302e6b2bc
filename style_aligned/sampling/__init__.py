"""From a style to images: the denoising loop."""

from style_aligned.sampling.generation import Sample, generate, generate_unaligned

__all__ = ["Sample", "generate", "generate_unaligned"]
