"""StyleAligned beside each of Refiners' adapters: in and out in any order, and what the two draw together.

The oracle draws image by image, in float64, with the other adapter injected by Refiners itself, and with attention that
is shared with the reference written out from the paper (tests/oracle.py). Nothing of StyleAlignedAdapter is in it.
"""

from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion.solvers import DDIM
from torch import Tensor

from style_aligned import Style, StyleAlignedAdapter, generate
from style_aligned.models.solvers import sample_noise
from tests.adapter import others
from tests.adapter.others import PROMPTS, Other
from tests.oracle import Options, attend_to_references, attention, relative_error

OTHERS = [
    others.Loras, others.TwoLoras, others.IPAdapter, others.IPAdapterPlus, others.FreeU, others.T2IAdapter,
    others.ControlLora,
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in (
        others.Controlnets, others.T2IAdapter1, others.TextualInversion,
    )),
]  # fmt: skip


class WrittenOut:
    """Attention in place of that of a model's self-attentions, for images that go through it one by one."""

    def __init__(self, unet: fl.Chain) -> None:
        self.recorded: dict[Any, list[Any]] = {}
        self.calls: dict[Any, int] | None = None
        for self_attention in list(unet.layers(fl.SelfAttention)):
            if not any(isinstance(parent, fl.Passthrough) for parent in self_attention.get_parents()):
                layer = self_attention.ensure_find(fl.ScaledDotProductAttention)
                written_out = fl.ScaledDotProductAttention(layer.num_heads)  # copies of the U-Net may have the other
                written_out.register_forward_hook(self.attend)
                self_attention.replace(layer, written_out)

    def start_target(self) -> None:
        """Go back to the first call, after the reference."""
        self.calls = dict.fromkeys(self.recorded, 0)

    def attend(self, layer: Any, inputs: tuple[Tensor, Tensor, Tensor], _: Tensor) -> Tensor:
        rows = list(zip(*inputs, strict=True))
        if self.calls is None:
            self.recorded.setdefault(layer, []).append(rows)
            return torch.stack([attention(*row, layer.num_heads, torch.ones(len(row[1])).double()) for row in rows])
        references = self.recorded[layer][self.calls[layer]]
        self.calls[layer] += 1
        attended = [
            attend_to_references(row, [reference], layer.num_heads, Options())
            for row, reference in zip(rows, references, strict=True)
        ]
        return torch.stack(attended)


@cache
def expected(kind: type[Other]) -> Tensor:
    other = kind()
    other.inject()
    written_out = WrittenOut(other.model.unet)
    other.model.unet.double()
    images: list[Tensor] = []
    for index in range(len(PROMPTS)):
        images.append(other.draw([index]))
        written_out.start_target()
    return torch.cat(images)


def tree(model: Any) -> list[Any]:
    """Every layer of U-Net and text encoder, its place, its parent, and its weights; and what is left of ours."""
    lines: list[Any] = []
    for part in (model.unet, model.clip_text_encoder):
        lines.append(None if part.parent is None else type(part.parent).__name__)
        for path, module in part.named_modules():
            parent = module.parent if isinstance(module, fl.Chain) and path else None
            contexts = {"style_aligned"} & {*module.provider.contexts} if isinstance(module, fl.Chain) else None
            lines.append((path, type(module).__name__, parent and type(parent).__name__, contexts))
        lines += [(name, float(parameter.detach().sum())) for name, parameter in part.named_parameters()]
    return lines


@pytest.mark.parametrize("kind", OTHERS)
def test_in_and_out_in_any_order(kind: type[Other]) -> None:
    other = kind()
    model, plain, untouched = other.model, other.draw(), tree(other.model)

    def build() -> dict[str, Any]:
        return {"ours": StyleAlignedAdapter(model.unet, set_size=len(PROMPTS)), "theirs": kind(model)}

    alone: dict[str, tuple[Tensor, Any]] = {}
    for name, adapter in build().items():
        adapter.inject()
        alone[name] = (adapter if name == "theirs" else other).draw(), tree(model)
        adapter.eject()

    for first_in, first_out in product(alone, repeat=2):
        last_in, last_out = ("theirs" if name == "ours" else "ours" for name in (first_in, first_out))
        order = f"in: {first_in}, {last_in}; out: {first_out}, {last_out}"
        adapters = build()
        draw = adapters["theirs"].draw
        adapters[first_in].inject()
        adapters[last_in].inject()
        both = draw()
        assert relative_error(both, expected(kind)) < 1e-5, order
        assert all(relative_error(both[1:], drawn[1:]) > 1e-4 for drawn, _ in alone.values()), order
        adapters[first_out].eject()
        assert torch.equal(draw(), alone[last_out][0]), order
        assert tree(model) == alone[last_out][1], order
        adapters[last_out].eject()
        assert torch.equal(draw(), plain), order
        assert tree(model) == untouched, order


@pytest.mark.parametrize("kind", OTHERS)
def test_micro_batches_equal_one_batch(kind: type[Other]) -> None:
    """Through `generate`, which records the reference and replays it. All images have the conditions of the first."""
    other = kind()
    other.inject()
    model, images = other.model, [0, 1, 2, 1]
    model.solver, other.steps = DDIM(num_inference_steps=2), 2
    noise = torch.cat([sample_noise(model, seed, other.size) for seed in range(len(images))])
    with StyleAlignedAdapter(model.unet), torch.no_grad():
        other.condition([0] * len(images))
        expected = Other.denoise(other, noise, images)

    other.condition([0])
    style = Style.from_prompt(
        model, PROMPTS[0], negative_prompt="ink", seed=0, num_inference_steps=2, condition_scale=2.0, size=other.size,
        options={"share_group_norm": False},
    )  # fmt: skip
    prompts = [PROMPTS[image] for image in images[1:]]
    for batch_size in (1, 2, 3):
        drawn = torch.cat([image.latents for image in generate(model, style, prompts, batch_size=batch_size)])
        assert relative_error(drawn, expected[1:]) < 1e-5, batch_size
    assert relative_error(style.latents[-1], expected[0]) < 1e-5
