from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl

from style_aligned.models.contexts import repeat_rows

TWO = torch.tensor([[1.0], [2.0]])  # the negative half, then the positive one


@pytest.mark.parametrize(
    ("context", "key"),
    [
        ("ip_adapter", "clip_image_embedding"),
        ("controlnet", "condition_canny"),
        ("control_lora_canny", "condition"),
    ],
)
def test_each_half_is_repeated_for_its_images(context: str, key: str) -> None:
    chain = fl.Chain(fl.Identity())
    chain.set_context(context, {key: TWO, "scale": 0.5})
    with repeat_rows(chain, halves=2, images=3):
        inside: dict[str, Any] = chain.use_context(context)
        assert inside[key].flatten().tolist() == [1, 1, 1, 2, 2, 2]
        assert inside["scale"] == 0.5
    assert chain.use_context(context)[key] is TWO


def test_each_of_several_features_is_repeated() -> None:
    chain = fl.Chain(fl.Identity())
    chain.set_context("t2iadapter", {"condition_features_depth": (TWO, 10 * TWO)})
    with repeat_rows(chain, halves=2, images=2):
        first, second = chain.use_context("t2iadapter")["condition_features_depth"]
    assert first.flatten().tolist() == [1, 1, 2, 2]
    assert second.flatten().tolist() == [10, 10, 20, 20]


def test_a_single_control_image_serves_any_number_of_rows() -> None:
    chain = fl.Chain(fl.Identity())
    chain.set_context("controlnet", {"condition_canny": TWO[:1]})
    with repeat_rows(chain, halves=2, images=3):
        assert len(chain.use_context("controlnet")["condition_canny"]) == 1


def test_other_rows_are_refused() -> None:
    chain = fl.Chain(fl.Identity())
    chain.set_context("controlnet", {"condition_canny": torch.zeros(3, 1)})
    with (
        pytest.raises(ValueError, match="expected the condition of the ControlNet to have 1 row, or 2 for"),
        repeat_rows(chain, halves=2, images=3),
    ):
        pass
