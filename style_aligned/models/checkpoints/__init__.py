"""Real weights in: Stable Diffusion XL and 1.5 from any format that people have."""

from style_aligned.models.checkpoints.convert import Conversion, convert_checkpoint
from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.load import load_model
from style_aligned.models.checkpoints.prompts import warn_about_prompts
from style_aligned.models.checkpoints.solver import SourceDDIM
from style_aligned.models.denoising import time_ids

__all__ = [
    "CheckpointError",
    "Conversion",
    "SourceDDIM",
    "convert_checkpoint",
    "load_model",
    "time_ids",
    "warn_about_prompts",
]
