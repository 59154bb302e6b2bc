"""StyleAligned beside each of Refiners' adapters: in and out in any order, and what the two draw together.

The oracle draws image by image, in float64, with the other adapter injected by Refiners itself, and with attention that
is shared with the reference written out from the paper (tests/oracle.py). Nothing of StyleAlignedAdapter is in it.
"""

from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion.solvers import DDIM
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.multi_diffusion import SDXLMultiDiffusion
from torch import Tensor

from style_aligned import ReferenceBank, Style, StyleAlignedAdapter, generate
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


Recorded = dict[Any, list[Any]]
"""For each self-attention, the queries, keys and values of each of its calls."""


class WrittenOut:
    """Attention in place of that of a model's self-attentions, for images that go through it one by one."""

    def __init__(self, unet: fl.Chain) -> None:
        self.recorded: dict[Any, Recorded] = {}
        self.reference: Any = None
        self.shares: Mapping[Any, float] = {}
        self.calls: Counter[Any] = Counter()
        for self_attention in list(unet.layers(fl.SelfAttention)):
            if not any(isinstance(parent, fl.Passthrough) for parent in self_attention.get_parents()):
                layer = self_attention.ensure_find(fl.ScaledDotProductAttention)
                written_out = fl.ScaledDotProductAttention(layer.num_heads)  # copies of the U-Net may have the other
                written_out.register_forward_hook(self.attend)
                self_attention.replace(layer, written_out)

    @contextmanager
    def record(self, reference: Any) -> Generator[None]:
        """Draw a reference."""
        self.reference, self.recorded[reference] = reference, {}
        yield
        self.reference = None

    @contextmanager
    def share(self, shares: Mapping[Any, float]) -> Generator[None]:
        """Draw a target of references, which count for a share each."""
        self.shares = shares
        self.calls.clear()
        yield
        self.shares = {}

    def attend(self, layer: Any, inputs: tuple[Tensor, Tensor, Tensor], _: Tensor) -> Tensor:
        rows = list(zip(*inputs, strict=True))
        if self.reference is not None:
            self.recorded[self.reference].setdefault(layer, []).append(rows)
        if not self.shares:
            return torch.stack([attention(*row, layer.num_heads, torch.ones(len(row[1])).double()) for row in rows])
        references = [self.recorded[reference][layer][self.calls[layer]] for reference in self.shares]
        self.calls[layer] += 1
        attended = [
            attend_to_references(row, its_references, layer.num_heads, Options(), shares=list(self.shares.values()))
            for row, *its_references in zip(rows, *references, strict=True)
        ]
        return torch.stack(attended)


@cache
def write_out(kind: type[Other]) -> tuple[Any, WrittenOut]:
    other = kind()
    other.inject()
    other.model.unet.double()
    return other, WrittenOut(other.model.unet)


@cache
def expected(kind: type[Other]) -> Tensor:
    other, written_out = write_out(kind)
    with written_out.record("the reference"):
        images = [other.draw([0])]
    for index in range(1, len(PROMPTS)):
        with written_out.share({"the reference": 1.0}):
            images.append(other.draw([index]))
    return torch.cat(images)


def tree(model: Any) -> list[Any]:
    """Every layer of U-Net and text encoder, its place, its parent, and its weights; and what is left of ours."""
    lines: list[Any] = []
    for part in (model.unet, model.clip_text_encoder):
        lines.append(None if part.parent is None else type(part.parent).__name__)
        for path, module in part.named_modules():
            parent = module.parent if isinstance(module, fl.Chain) and path else None
            contexts = {*module.provider.contexts.get("style_aligned", ())} if isinstance(module, fl.Chain) else None
            lines.append((path, type(module).__name__, parent and type(parent).__name__, contexts))
        lines += [(name, float(parameter.detach().sum())) for name, parameter in part.named_parameters()]
    return lines


@pytest.mark.parametrize("kind", [*OTHERS, others.SelfAttentionGuidance])
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
        if kind.only_once:
            model = kind().model
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


@pytest.mark.parametrize("kind", [others.MultiDiffusion, others.Restarted])
def test_loops_of_refiners(kind: type[Other]) -> None:
    other = kind()
    plain, untouched = other.draw(), tree(other.model)
    with StyleAlignedAdapter(other.model.unet, set_size=len(PROMPTS)):
        aligned = other.draw()
    assert relative_error(aligned, expected(kind)) < 1e-5
    assert relative_error(aligned[1:], plain[1:]) > 1e-4
    assert torch.equal(other.draw(), plain)
    assert tree(other.model) == untouched


@torch.no_grad()
def test_several_styles_in_one_panorama() -> None:
    """On the left the first reference, on the right the second, and both of them between."""
    styles = [{0: 1.0}, {0: 0.5, 1: 0.5}, {1: 1.0}]

    def draw(other: Any, record: Callable[[int], Any], share: Callable[[dict[int, float]], Any]) -> Tensor:
        references = {image: other.noise([image]) for image in (0, 1)}
        panorama = torch.cat([other.noise([2], seed=seed) for seed in (3, 4)], dim=-1)
        views = [other.view(left, [2]) for left in (0, 4, 8)]

        def diffuse_target(x: Tensor, step: int, target: Any) -> Tensor:
            with share(styles[views.index(target)]):
                return SDXLMultiDiffusion.diffuse_target(other.diffuse, x, step, target)

        other.diffuse.diffuse_target = diffuse_target
        for step in other.model.steps[:2]:
            for image in references:
                with record(image):
                    references[image] = other.model(
                        references[image], step=step, condition_scale=2.0, **other.texts([image])
                    )
            panorama = other.diffuse(panorama, noise=panorama, step=step, targets=views)
        return panorama

    other = others.MultiDiffusion()
    banks = {0: ReferenceBank(), 1: ReferenceBank()}
    with StyleAlignedAdapter(other.model.unet) as adapter:
        drawn = draw(
            other,
            lambda image: adapter.record(banks[image]),
            lambda shares: adapter.replay(*(banks[image] for image in shares), weights=list(shares.values())),
        )
    exact, written_out = write_out(others.MultiDiffusion)
    assert relative_error(drawn, draw(exact, written_out.record, written_out.share)) < 1e-5
    del styles[1:]
    styles *= 3
    assert relative_error(drawn, draw(exact, written_out.record, written_out.share)) > 1e-3


def test_reference_only_control() -> None:
    """In a loop of one's own: it takes single images, so their references are recorded and replayed."""
    kind = others.ReferenceOnlyControl
    other = kind()
    model, untouched = other.model, tree(other.model)
    adapter, bank = StyleAlignedAdapter(model.unet), ReferenceBank()
    other.inject()
    alone, guided = other.draw(), tree(model)
    adapter.inject()
    exact, written_out = write_out(kind)

    def around(image: int) -> AbstractContextManager[None]:
        return adapter.record(bank) if image == 0 else adapter.replay(bank)

    def around_exact(image: int) -> AbstractContextManager[None]:
        return written_out.record(0) if image == 0 else written_out.share({0: 1.0})

    aligned, expected = other.draw(around=around), exact.draw(around=around_exact)
    assert relative_error(aligned, expected) < 1e-5
    assert relative_error(aligned[:1], alone[:1]) < 1e-5
    assert relative_error(aligned[1:], alone[1:]) > 1e-4
    adapter.eject()
    assert torch.equal(other.draw(), alone)
    assert tree(model) == guided
    adapter.inject()
    other.eject()  # from under it
    adapter.eject()
    assert tree(model) == untouched
