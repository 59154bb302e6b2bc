"""What a model needs beyond its weights, as the checkpoint that it was loaded from says."""

from dataclasses import dataclass
from typing import Any

from refiners.fluxion import layers as fl


@dataclass(frozen=True)
class Traits:
    """What a model needs beyond its weights; the defaults are those of a model that was built with Refiners alone.

    Attributes:
        prediction_type: What its U-Net predicts: `"epsilon"` (noise) or `"v_prediction"` (velocity).
        force_zeros_for_empty_prompt: Whether an empty negative prompt means an embedding of zeros, as in diffusers'
            pipeline for SDXL, and not that of an empty text.
    """

    prediction_type: str = "epsilon"
    force_zeros_for_empty_prompt: bool = False


def traits_of(model: fl.Module) -> Traits:
    """Return the traits that a model was loaded with."""
    traits: Any = vars(model).get("traits")
    return traits if isinstance(traits, Traits) else Traits()


def set_traits(model: fl.Module, traits: Traits) -> None:
    """Note the traits of a model."""
    vars(model)["traits"] = traits
