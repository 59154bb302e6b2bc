"""StyleAligned together with other adapters of Refiners. Pairs, and loops of Refiners: see test_stacking_pairs.py."""

from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.adapters import Adapter
from refiners.foundationals.latent_diffusion.cross_attention import CrossAttentionBlock2d
from refiners.foundationals.latent_diffusion.freeu import SDFreeUAdapter
from refiners.foundationals.latent_diffusion.lora import SDLoraManager
from refiners.foundationals.latent_diffusion.solvers import DDIM
from torch import Tensor

from style_aligned import ReferenceBank, StyleAligned, StyleAlignedAdapter
from style_aligned.models.mini import Mini
from style_aligned.models.solvers import sample_noise
from tests.chains import snapshot
from tests.conftest import build_random_mini
from tests.oracle import relative_error

SIZE = (64, 64)
PROMPTS = ["a fox, neon sign", "a dog", "a cat, ink"]


@pytest.fixture
def model(random_mini: Mini) -> Mini:
    random_mini.solver = DDIM(num_inference_steps=4)
    random_mini.classifier_free_guidance = True
    random_mini.unet.set_context("unet", {"residuals": [0.0] * 10})
    return random_mini


@torch.no_grad()
def denoise(model: Mini, prompts: list[str]) -> Tensor:
    x = torch.cat([sample_noise(model, seed, SIZE) for seed in range(len(prompts))])
    embedding, pooled = model.compute_clip_text_embedding(prompts, [""] * len(prompts))
    time_ids = model.default_time_ids.repeat_interleave(len(prompts), dim=0)
    for step in model.steps[:2]:
        x = model(x, step=step, clip_text_embedding=embedding, pooled_text_embedding=pooled, time_ids=time_ids)
    return x


def free_u(unet: Any) -> Any:
    return SDFreeUAdapter(unet, backbone_scales=[1.2, 1.4], skip_scales=[0.9, 0.2])


class Doubled(fl.Chain, Adapter[fl.ScaledDotProductAttention]):
    """Something that others may put around an attention."""

    def __init__(self, target: fl.ScaledDotProductAttention) -> None:
        with self.setup_adapter(target):
            super().__init__(target, fl.Multiply(2.0))


@pytest.mark.parametrize("ours_first", [False, True])
@pytest.mark.parametrize("way", ["strength", "mask", "several references"])
def test_what_is_around_an_attention_counts(way: str, ours_first: bool) -> None:
    chain = fl.Chain(fl.SelfAttention(embedding_dim=16, num_heads=2, use_bias=False))
    x = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(1))
    self_attention = chain.layer("SelfAttention", fl.SelfAttention)
    adapter = StyleAlignedAdapter(chain, set_size=3)
    before = snapshot(chain)

    def aligned() -> Tensor:
        adapter.strength = 1.0 if way == "mask" else 2.0
        adapter.reference_mask = torch.tensor([[0.25, 1.0]]).repeat(4, 2) if way == "mask" else None
        if way != "several references":
            return chain(x)[1:]
        banks = [ReferenceBank(), ReferenceBank()]
        for bank, reference in zip(banks, x, strict=False):
            with adapter.record(bank):
                chain(reference[None])
        with adapter.replay(*banks, weights=[1.0, 3.0]):
            return chain(x[2:])

    bias = self_attention.layer(-1, fl.Linear).bias
    with adapter:
        expected = 2 * (aligned() - bias) + bias
    if ours_first:
        adapter.inject()
    attention = self_attention.ensure_find(fl.ScaledDotProductAttention)
    around = Doubled(attention).inject(self_attention)
    if not ours_first:
        adapter.inject()
    assert relative_error(aligned(), expected) < 1e-5
    for one in (around, adapter) if ours_first else (adapter, around):
        one.eject()
    assert snapshot(chain) == before


def test_ejection_from_under_another_adapter(model: Mini) -> None:
    plain, ours = denoise(model, PROMPTS), StyleAlignedAdapter(model.unet)
    with ours:
        aligned = denoise(model, PROMPTS)
    other = free_u(model.unet).inject()
    other_alone = denoise(model, PROMPTS)
    other.eject()
    ours.inject()
    other.inject()
    ours.eject()
    assert not [parent for parent in model.unet.get_parents() if parent is ours]
    assert torch.equal(denoise(model, PROMPTS), other_alone)
    ours.inject()  # again, while the other is there
    assert relative_error(denoise(model, PROMPTS), other_alone) > 1e-4
    ours.eject()
    other.eject()
    assert model.unet.parent is None
    assert torch.equal(denoise(model, PROMPTS), plain)
    with ours:
        other = free_u(model.unet).inject()
        other.eject()
        assert torch.equal(denoise(model, PROMPTS), aligned)


def test_loras_of_the_manager(model: Mini) -> None:
    # in the order in which the manager looks for places
    linears = [linear for block in model.unet.layers(CrossAttentionBlock2d) for linear in block.layers(fl.Linear)]
    tensors: dict[str, Tensor] = {}
    for index, linear in enumerate(linears):
        generator = torch.Generator().manual_seed(index)
        name = f"unet_{index:03}_transformer"
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, linear.in_features, generator=generator)
        tensors[f"{name}.lora_up.weight"] = 0.05 * torch.randn(linear.out_features, 2, generator=generator)
    plain = denoise(model, PROMPTS)
    with StyleAlignedAdapter(model.unet):
        aligned = denoise(model, PROMPTS)

    manager = SDLoraManager(model)
    manager.add_loras("by hand", tensors, scale=0.8)
    assert len(manager.loras) == len(linears)
    weights = [lora.up.weight for lora in manager.loras]
    assert all(
        torch.equal(weight, tensors[f"unet_{i:03}_transformer.lora_up.weight"]) for i, weight in enumerate(weights)
    )
    alone = denoise(model, PROMPTS)
    with StyleAlignedAdapter(model.unet):
        both = denoise(model, PROMPTS)
        manager.set_scale("by hand", 0)
        torch.testing.assert_close(denoise(model, PROMPTS), aligned)
        manager.remove_loras("by hand")
        assert torch.equal(denoise(model, PROMPTS), aligned)
    assert torch.equal(denoise(model, PROMPTS), plain)
    for one, another in ((both, aligned), (both, alone), (alone, plain)):
        assert relative_error(one[1:], another[1:]) > 1e-4


def test_self_attention_guidance_with_a_set(fresh_mini: Mini) -> None:
    model = fresh_mini
    model.solver = DDIM(num_inference_steps=4)
    model.set_self_attention_guidance(enable=True, scale=2.0)
    unaligned, alone = denoise(model, PROMPTS), denoise(model, PROMPTS[:1])
    with StyleAlignedAdapter(model.unet, set_size=3) as adapter:
        aligned = denoise(model, PROMPTS)
        adapter.set_size = None
        with pytest.raises(ValueError, match="got a batch of 3 rows, expected the two guidance halves"):
            denoise(model, PROMPTS)  # the second pass
    assert relative_error(aligned[:1], alone) < 1e-5
    assert relative_error(aligned[1:], unaligned[1:]) > 1e-4
    model.set_self_attention_guidance(enable=False)
    assert model.unet.find(StyleAligned) is None

    other = build_random_mini()
    other.solver = DDIM(num_inference_steps=4)
    with StyleAlignedAdapter(other.unet, set_size=3):
        other.set_self_attention_guidance(enable=True, scale=2.0)
        assert torch.equal(denoise(other, PROMPTS), aligned), "in either order"
