"""The embedded model's U-Net is an SDXL U-Net in everything but width."""

from collections import Counter
from collections.abc import Iterator

import pytest
import refiners.fluxion.layers as fl
import torch
from refiners.fluxion.adapters.lora import LinearLora, LoraAdapter
from refiners.foundationals.clip.image_encoder import CLIPImageEncoderH
from refiners.foundationals.latent_diffusion.cross_attention import CrossAttentionBlock, CrossAttentionBlock2d
from refiners.foundationals.latent_diffusion.freeu import SDFreeUAdapter
from refiners.foundationals.latent_diffusion.image_prompt import ImageProjection
from refiners.foundationals.latent_diffusion.lora import SDLoraManager
from refiners.foundationals.latent_diffusion.range_adapter import RangeAdapter2d
from refiners.foundationals.latent_diffusion.stable_diffusion_xl import SDXLIPAdapter
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.control_lora import (
    ConditionEncoder,
    ControlLoraAdapter,
)
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.lcm import SDXLLcmAdapter
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.lcm_lora import add_lcm_lora
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.self_attention_guidance import SDXLSAGAdapter
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.t2i_adapter import SDXLT2IAdapter
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.unet import SDXLUNet
from refiners.foundationals.latent_diffusion.style_aligned import StyleAlignedAdapter as RefinersStyleAlignedAdapter
from refiners.foundationals.latent_diffusion.t2i_adapter import ConditionEncoderXL
from refiners.foundationals.latent_diffusion.unet import ResidualAccumulator, ResidualBlock, ResidualConcatenator

from style_aligned.models.mini import Mini, MiniAutoencoder, MiniDoubleTextEncoder, MiniUNet

Tree = list[tuple[str, str]]


def tree(module: torch.nn.Module) -> Tree:
    """Every layer's path and class, to the last leaf (a `repr` stops at depth 7)."""
    return [(name, type(layer).__name__) for name, layer in module.named_modules()]


def set_contexts(unet: SDXLUNet, batch: int = 2) -> None:
    generator = torch.Generator().manual_seed(1)
    unet.set_timestep(torch.tensor([500]))
    unet.set_clip_text_embedding(torch.randn(batch, 5, 128, generator=generator))
    unet.set_pooled_text_embedding(torch.randn(batch, 64, generator=generator))
    unet.set_time_ids(torch.tensor([[256, 256, 0, 0, 256, 256]]).repeat(batch, 1))


@torch.no_grad()
def predict(unet: SDXLUNet, batch: int = 2, size: int = 16) -> torch.Tensor:
    set_contexts(unet, batch)
    return unet(torch.randn(batch, 4, size, size, generator=torch.Generator().manual_seed(2)))


@pytest.fixture(scope="module")
def unet() -> MiniUNet:
    torch.manual_seed(0)
    return MiniUNet()


@pytest.fixture(scope="module")
def sdxl() -> SDXLUNet:
    return SDXLUNet(in_channels=4, device="meta")


@pytest.fixture(autouse=True)
def left_as_found(unet: MiniUNet) -> Iterator[None]:
    """Whatever a test injects, the U-Net's tree and its results are afterwards as before."""
    layers, result = tree(unet), predict(unet)
    yield
    assert unet.parent is None
    assert tree(unet) == layers
    assert torch.equal(predict(unet), result)


def test_same_layers_as_sdxl(unet: MiniUNet, sdxl: SDXLUNet) -> None:
    # paths and classes are the same, save that a transformer has one layer here, and two or ten there
    def outside_of_transformers(module: torch.nn.Module) -> Tree:
        return [(path, name) for path, name in tree(module) if "SDXLCrossAttention.Chain_2" not in path][1:]

    assert outside_of_transformers(unet) == outside_of_transformers(sdxl)
    assert isinstance(unet, SDXLUNet)


def test_counts(unet: MiniUNet) -> None:
    count = Counter(type(layer).__name__ for layer in unet.modules())
    assert count["SelfAttention"] == 11  # 4 on the way down, 1 in the middle, 6 on the way up
    assert count["Attention"] == 11
    assert count["ResidualBlock"] == count["RangeAdapter2d"] == 17
    assert len(list(unet.layers(ResidualAccumulator))) == len(list(unet.layers(ResidualConcatenator))) == 9
    assert len(unet.layer("DownBlocks", fl.Chain)) == len(unet.layer("UpBlocks", fl.Chain)) == 9
    assert sum(parameter.numel() for parameter in unet.parameters()) < 7_000_000


def test_every_parameter_matters(unet: MiniUNet) -> None:
    set_contexts(unet)
    unet.zero_grad()
    unet(torch.randn(2, 4, 16, 16)).square().sum().backward()
    assert [name for name, parameter in unet.named_parameters() if parameter.grad is None] == []
    unet.zero_grad()


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 32, 32), (3, 16, 32), (2, 12, 20), (1, 9, 13)])
def test_finite_for_any_shape(unet: MiniUNet, batch: int, height: int, width: int) -> None:
    set_contexts(unet, batch)
    with torch.no_grad():
        y = unet(torch.randn(batch, 4, height, width))
    assert y.shape == (batch, 4, height, width)
    assert y.isfinite().all()


@pytest.mark.parametrize("key", ["timestep", "clip_text_embedding", "pooled_text_embedding", "time_ids"])
def test_every_context_matters(unet: MiniUNet, key: str) -> None:
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    set_contexts(unet)
    other = {
        "timestep": torch.tensor([7]),
        "clip_text_embedding": torch.randn(2, 5, 128),
        "pooled_text_embedding": torch.randn(2, 64),
        "time_ids": torch.tensor([[128, 256, 0, 0, 256, 256]]).repeat(2, 1),
    }
    getattr(unet, f"set_{key}")(other[key])
    with torch.no_grad():
        assert not torch.equal(unet(x), predict(unet))


def test_rows_do_not_mix(unet: MiniUNet) -> None:
    set_contexts(unet)
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    x[1] = 0
    with torch.no_grad():
        assert torch.allclose(unet(x)[0], predict(unet)[0], atol=1e-5)


def test_other_widths() -> None:
    unet = MiniUNet(channels=(16, 32, 48), context_dim=24, pooled_dim=8, timestep_dim=32, device="meta")
    assert {block.out_channels for block in unet.layers(ResidualBlock)} == {16, 32, 48}
    assert {adapter.embedding_dim for adapter in unet.layers(RangeAdapter2d)} == {32}


def test_structural_copy_computes_the_same(unet: MiniUNet) -> None:
    assert torch.equal(predict(unet.structural_copy()), predict(unet))


def test_image_prompt_adapter(unet: MiniUNet) -> None:
    encoder = CLIPImageEncoderH(device="meta")
    before = predict(unet)
    projection = ImageProjection(clip_image_embedding_dim=8, clip_text_embedding_dim=128)
    adapter = SDXLIPAdapter(unet, clip_image_encoder=encoder, image_proj=projection).inject()
    assert len(adapter.sub_adapters) == 11
    adapter.set_clip_image_embedding(projection(torch.randn(2, 8)))
    assert not torch.equal(predict(unet), before)
    adapter.eject()


def test_control_lora(unet: MiniUNet) -> None:
    before = predict(unet)
    adapter = ControlLoraAdapter(name="lines", target=unet).inject()
    assert adapter.control_lora.ensure_find(ConditionEncoder)
    adapter.set_condition(torch.randn(2, 3, 128, 128))
    assert not torch.equal(predict(unet), before)
    adapter.eject()


def test_free_u(unet: MiniUNet) -> None:
    before = predict(unet)
    adapter = SDFreeUAdapter(unet, backbone_scales=[1.2, 1.2], skip_scales=[0.9, 0.9]).inject()
    assert not torch.equal(predict(unet), before)
    adapter.eject()


def test_self_attention_guidance(unet: MiniUNet) -> None:
    adapter = SDXLSAGAdapter(unet).inject()
    predict(unet)
    assert adapter.compute_sag_mask(torch.randn(1, 4, 16, 16)).shape == (1, 4, 16, 16)
    adapter.eject()


def test_t2i_adapter(unet: MiniUNet) -> None:
    before = predict(unet)
    first, second, third = unet.channels
    encoder = ConditionEncoderXL(channels=(first, second, third, third))
    adapter = SDXLT2IAdapter(unet, name="lines", condition_encoder=encoder).inject()
    features = [torch.randn(2, c, s, s) for c, s in ((first, 8), (second, 8), (third, 4), (third, 4))]
    adapter.set_condition_features(tuple(features))
    assert not torch.equal(predict(unet), before)
    adapter.eject()


def test_lcm(unet: MiniUNet) -> None:
    before = predict(unet)
    adapter = SDXLLcmAdapter(unet).inject()
    assert not torch.equal(predict(unet), before)
    adapter.eject()


def test_lora(unet: MiniUNet) -> None:
    before = predict(unet)
    # those that hold the transformers' projections only, as community LoRAs do
    places = [
        (linear, parent)
        for linear, parent in unet.walk(fl.Linear)
        if any(isinstance(above, fl.Attention) for above in (parent, *parent.get_parents()))
    ]
    assert len(places) == 11 * 2 * 4
    adapters: list[LoraAdapter] = []
    for i, (linear, parent) in enumerate(places):
        lora = LinearLora(f"lora-{i}", in_features=linear.in_features, out_features=linear.out_features, rank=2)
        torch.nn.init.normal_(lora.up.weight)
        adapters.append(LoraAdapter(linear, lora).inject(parent))
    assert not torch.equal(predict(unet), before)
    for adapter in adapters:
        adapter.eject()


def test_lcm_lora(unet: MiniUNet) -> None:
    def weights(layer: fl.Linear | fl.Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        down, up = torch.Size((2, *layer.weight.shape[1:])), torch.Size((layer.weight.shape[0], 2))
        up = up if layer.weight.ndim == 2 else torch.Size((*up, 1, 1))
        return tuple(0.1 * torch.randn(shape, generator=generator) for shape in (down, up))  # pyright: ignore

    places: dict[str, fl.Linear | fl.Conv2d] = {}
    for block in unet.layers(CrossAttentionBlock2d):
        inner = [
            linear for transformer in block.layers(CrossAttentionBlock) for linear in transformer.layers(fl.Linear)
        ]
        for linear in block.layers(fl.Linear):
            places[f"{len(places):03}_{'ff' if any(linear is one for one in inner) else 'proj_in'}"] = linear
    for kind, name in ((ResidualBlock, "resnets"), (fl.Downsample, "downsamplers"), (fl.Upsample, "upsamplers")):
        for layer in unet.layers(kind):
            for convolution in layer.layers(fl.Conv2d):
                if convolution.kernel_size == (3, 3):
                    places[f"{len(places):03}_{name}_conv"] = convolution
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in places.items():
        down, up = weights(layer)
        tensors |= {f"lora_unet_{name}.lora_down.weight": down, f"lora_unet_{name}.lora_up.weight": up}

    before = predict(unet)
    model = Mini(unet=unet, lda=MiniAutoencoder(), clip_text_encoder=MiniDoubleTextEncoder(["fox"]))
    manager = SDLoraManager(model)
    add_lcm_lora(manager, tensors, check_validity=False)
    assert len(manager.loras) == len(places) > 150
    assert manager.scales == {"lcm": 0.125}
    assert not torch.equal(predict(unet), before)
    manager.remove_all()


def test_the_builtin_adapter(unet: MiniUNet) -> None:
    before = predict(unet, batch=4)
    adapter = RefinersStyleAlignedAdapter(unet).inject()
    after = predict(unet, batch=4)
    assert torch.allclose(after[::2], before[::2], atol=1e-4)  # references
    assert not torch.allclose(after[1::2], before[1::2], atol=1e-2)
    adapter.eject()
