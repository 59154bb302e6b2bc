"""Refiners' other adapters, with random weights, and how a set or a single image of it is drawn with them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.adapters.lora import LinearLora, LoraAdapter
from refiners.foundationals.clip.concepts import ConceptExtender
from refiners.foundationals.clip.image_encoder import CLIPImageEncoder
from refiners.foundationals.clip.text_encoder import CLIPTextEncoderL
from refiners.foundationals.latent_diffusion import (
    SD1ControlnetAdapter,
    SD1T2IAdapter,
    SD1UNet,
    SDXLT2IAdapter,
    StableDiffusion_1,
)
from refiners.foundationals.latent_diffusion.freeu import SDFreeUAdapter
from refiners.foundationals.latent_diffusion.image_prompt import ImageProjection, PerceiverResampler
from refiners.foundationals.latent_diffusion.reference_only_control import (
    ReferenceOnlyControlAdapter,
    SelfAttentionInjectionPassthrough,
)
from refiners.foundationals.latent_diffusion.restart import Restart
from refiners.foundationals.latent_diffusion.solvers import DDIM
from refiners.foundationals.latent_diffusion.stable_diffusion_1 import controlnet as refiners_controlnet
from refiners.foundationals.latent_diffusion.stable_diffusion_1.model import SD1Autoencoder
from refiners.foundationals.latent_diffusion.stable_diffusion_xl import SDXLIPAdapter
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.control_lora import ControlLoraAdapter
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.multi_diffusion import (
    SDXLDiffusionTarget,
    SDXLMultiDiffusion,
)
from refiners.foundationals.latent_diffusion.t2i_adapter import ConditionEncoder, ConditionEncoderXL
from torch import Tensor, device as Device

from style_aligned.models.checkpoints.initialization import NoInitialization
from style_aligned.models.denoising import time_ids
from style_aligned.models.mini.unet import CONTEXT_DIM
from tests.conftest import build_random_mini
from tests.models.checkpoints.narrow import AUTOENCODER_WIDTHS, TEXT_L_WIDTHS, UNET_1_WIDTHS, narrow

PROMPTS = ["a fox, neon sign", "a dog", "a cat, ink"]
FEATURES = 24  # of an image encoder


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Fill all weights, so that every layer counts."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 1 + 0.2 * noise
        parameter.requires_grad_(False)


def build_random_1() -> StableDiffusion_1:
    """Stable Diffusion 1.5 with a tenth of the width, and random weights."""
    with NoInitialization():
        model = StableDiffusion_1(
            unet=SD1UNet(in_channels=4, device="meta"),
            lda=SD1Autoencoder(device="meta"),
            clip_text_encoder=CLIPTextEncoderL(device="meta"),
            device="meta",
        )
    for part, widths in (
        (model.unet, UNET_1_WIDTHS), (model.lda, AUTOENCODER_WIDTHS), (model.clip_text_encoder, TEXT_L_WIDTHS),
    ):  # fmt: skip
        narrow(part, widths, heads={12: 2})
        part.to_empty(device="cpu")
        randomise(part, seed=0)
    model.device = Device("cpu")
    return model


class NarrowControlnet(refiners_controlnet.Controlnet):
    """Refiners' ControlNet, as narrow as the U-Net."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        with NoInitialization():
            super().__init__(*arguments, **{**options, "device": "meta"})
        narrow(self, UNET_1_WIDTHS)
        self.to_empty(device="cpu")


class Other:
    """Another adapter beside a model. Whatever is random in it is the same at every time that it is built."""

    latents = 8
    """The height and width of the latents."""
    only_once = False
    """Whether Refiners can put it into a model only once."""
    steps = 1

    def __init__(self, model: Any = None) -> None:
        """Build it beside a model.

        Args:
            model: The model, as `build_model` makes it. None builds one.
        """
        self.model: Any = self.build_model() if model is None else model
        self.model.solver = DDIM(num_inference_steps=4)
        self.adapters: list[Any] = []
        torch.manual_seed(1)
        self.build()

    def build_model(self) -> Any:
        return build_random_mini()

    def build(self) -> None:
        """Build the adapters."""
        raise NotImplementedError

    def inject(self) -> None:
        for adapter in self.adapters:
            adapter.inject()

    def eject(self) -> None:
        for adapter in reversed(self.adapters):
            adapter.eject()

    def condition(self, images: Sequence[int]) -> None:
        """Give the adapter its conditions for some images, each its own, in both guidance halves."""

    def rows(self, values: Tensor, images: Sequence[int]) -> Tensor:
        """Return rows of both guidance halves: `values` has those of all images, and as many of the other half."""
        halves = values.chunk(2)
        return torch.cat([half[list(images)] for half in halves]).to(dtype=self.dtype)

    @property
    def size(self) -> tuple[int, int]:
        """The height and width of the images, in pixels."""
        return 8 * self.latents, 8 * self.latents

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.unet.parameters()).dtype

    def noise(self, images: Sequence[int], seed: int = 0) -> Tensor:
        return random(len(PROMPTS), 4, self.latents, self.latents, seed=seed)[list(images)].to(dtype=self.dtype)

    def texts(self, images: Sequence[int]) -> dict[str, Tensor]:
        """Return what the U-Net takes of the prompts, in both guidance halves."""
        prompts = [PROMPTS[index] for index in images]
        embedding = self.model.compute_clip_text_embedding(prompts, ["ink"] * len(prompts))
        if isinstance(embedding, Tensor):
            return {"clip_text_embedding": embedding.to(dtype=self.dtype)}
        return {
            "clip_text_embedding": embedding[0].to(dtype=self.dtype),
            "pooled_text_embedding": embedding[1].to(dtype=self.dtype),
            "time_ids": time_ids(self.size, rows=2 * len(prompts)),
        }

    @torch.no_grad()
    def draw(self, images: Sequence[int] = range(len(PROMPTS))) -> Tensor:
        """Draw some images in one batch, by Refiners' own loop."""
        self.condition(images)
        return self.denoise(self.noise(images), images)

    def denoise(self, x: Tensor, images: Sequence[int]) -> Tensor:
        texts = self.texts(images)
        for step in self.model.steps[: self.steps]:
            x = self.model(x, step=step, condition_scale=2.0, **texts)
        return x


class Loras(Other):
    """A LoRA on the queries, keys and values of every self-attention."""

    scales = (1.0,)

    def build(self) -> None:
        linears = [
            (linear, parent)
            for self_attention in self.model.unet.layers(fl.SelfAttention)
            for linear, parent in self_attention.layer(1, fl.Distribute).walk(fl.Linear)
        ]
        self.loras = [
            [LinearLora(f"lora {number}", linear.in_features, linear.out_features) for linear, _ in linears]
            for number in range(len(self.scales))
        ]
        for lora in (lora for loras in self.loras for lora in loras):
            torch.nn.init.normal_(lora.up.weight, std=0.2)
            lora.requires_grad_(False)
        self.places = [
            (LoraAdapter(linear, *loras), parent) for (linear, parent), *loras in zip(linears, *self.loras, strict=True)
        ]

    def inject(self) -> None:
        for adapter, parent in self.places:
            adapter.inject(parent)

    def eject(self) -> None:
        for adapter, _ in self.places:
            adapter.eject()

    def condition(self, images: Sequence[int]) -> None:
        for loras, scale in zip(self.loras, self.scales, strict=True):
            for lora in loras:
                lora.scale = scale


class TwoLoras(Loras):
    """Two LoRAs, whose scales change from one step to the next, while they are injected."""

    scales = (0.7, 0.2)
    steps = 2

    def denoise(self, x: Tensor, images: Sequence[int]) -> Tensor:
        texts = self.texts(images)
        for step in self.model.steps[: self.steps]:
            for loras, scale in zip(self.loras, self.scales if step == 0 else (-0.4, 0.9), strict=True):
                for lora in loras:
                    lora.scale = scale
            x = self.model(x, step=step, condition_scale=2.0, **texts)
        return x


class FreeU(Other):
    def build(self) -> None:
        self.adapters = [SDFreeUAdapter(self.model.unet, backbone_scales=[1.2, 1.4], skip_scales=[0.9, 0.2])]


class IPAdapter(Other):
    """An image prompt for each image."""

    is_plus = False

    def build(self) -> None:
        if self.is_plus:
            encoder = CLIPImageEncoder(embedding_dim=FEATURES, output_dim=FEATURES, num_layers=32, device="meta")
            projection: Any = PerceiverResampler(
                latents_dim=32, num_attention_layers=1, num_attention_heads=2, head_dim=16, num_tokens=5,
                input_dim=FEATURES, output_dim=CONTEXT_DIM,
            )  # fmt: skip
            features = random(2 * len(PROMPTS), 7, FEATURES, seed=2)
        else:
            encoder = CLIPImageEncoder(output_dim=FEATURES, num_layers=1, device="meta")
            projection = ImageProjection(FEATURES, CONTEXT_DIM, num_tokens=4)
            features = random(2 * len(PROMPTS), FEATURES, seed=2)
        adapter = SDXLIPAdapter(
            self.model.unet,
            encoder,  # pyright: ignore[reportArgumentType]
            image_proj=projection,
            scale=0.8,
            fine_grained=self.is_plus,
        )
        adapter.requires_grad_(False)
        for sub_adapter in adapter.sub_adapters:
            sub_adapter.requires_grad_(False)
        self.tokens = projection(features).detach()
        self.adapters = [adapter]

    def condition(self, images: Sequence[int]) -> None:
        self.adapters[0].set_clip_image_embedding(self.rows(self.tokens, images))


class IPAdapterPlus(IPAdapter):
    is_plus = True


class T2IAdapter(Other):
    """The T2I-Adapter of SDXL, with a picture for each image."""

    def build(self) -> None:
        encoder = self.build_encoder()
        encoder.requires_grad_(False)
        self.adapters = [self.build_adapter(encoder)]
        self.features = encoder(random(2 * len(PROMPTS), 3, 8 * self.latents, 8 * self.latents, seed=3))

    def build_encoder(self) -> Any:
        return ConditionEncoderXL(channels=(16, 32, 48, 48))

    def build_adapter(self, encoder: Any) -> Any:
        return SDXLT2IAdapter(self.model.unet, "sketch", encoder, scale=0.9)

    def condition(self, images: Sequence[int]) -> None:
        self.adapters[0].set_condition_features(tuple(self.rows(features, images) for features in self.features))


class T2IAdapter1(T2IAdapter):
    """The same of Stable Diffusion 1.5."""

    latents = 16

    def build_model(self) -> Any:
        return build_random_1()

    def build_encoder(self) -> Any:
        return ConditionEncoder(channels=(32, 64, 128, 128))

    def build_adapter(self, encoder: Any) -> Any:
        return SD1T2IAdapter(self.model.unet, "sketch", encoder, scale=0.9)


class Controlnets(Other):
    """Two ControlNets of Stable Diffusion 1.5, with a picture each for each image."""

    latents = 16

    def build_model(self) -> Any:
        return build_random_1()

    def build(self) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(refiners_controlnet, "Controlnet", NarrowControlnet)
            for number, name in enumerate(("canny", "depth")):
                self.adapters.append(SD1ControlnetAdapter(self.model.unet, name, scale=0.6 + number / 4))
                randomise(self.adapters[-1].controlnet, seed=4 + number)
        size = 8 * self.latents
        self.pictures = [random(2 * len(PROMPTS), 3, size, size, seed=6 + number).sigmoid() for number in range(2)]

    def condition(self, images: Sequence[int]) -> None:
        for adapter, pictures in zip(self.adapters, self.pictures, strict=True):
            adapter.set_controlnet_condition(self.rows(pictures, images))


class ControlLora(Other):
    """A ControlLora of SDXL with a LoRA on its own queries, and a picture for each image."""

    steps = 2

    def build(self) -> None:
        adapter = ControlLoraAdapter("edges", self.model.unet, scale=0.7)
        for self_attention in list(adapter.control_lora.layers(fl.SelfAttention)):
            for linear, parent in list(self_attention.layer(1, fl.Distribute).walk(fl.Linear)):
                lora = LinearLora("edges", linear.in_features, linear.out_features)
                torch.nn.init.normal_(lora.up.weight, std=0.2)
                LoraAdapter(linear, lora).inject(parent)
        adapter.control_lora.requires_grad_(False)
        self.adapters = [adapter]
        self.pictures = random(2 * len(PROMPTS), 3, 8 * self.latents, 8 * self.latents, seed=5).sigmoid()

    def condition(self, images: Sequence[int]) -> None:
        self.adapters[0].set_condition(self.rows(self.pictures, images))


class TextualInversion(Other):
    """A word that a text encoder has learnt."""

    latents = 16

    def build_model(self) -> Any:
        return build_random_1()

    def build(self) -> None:
        extender = ConceptExtender(self.model.clip_text_encoder)
        extender.add_concept("dog", random(32, seed=7))
        self.adapters = [extender]


class SelfAttentionGuidance(Other):
    steps = 2
    only_once = True

    def build(self) -> None:
        pass

    def inject(self) -> None:
        self.model.set_self_attention_guidance(enable=True, scale=2.0)

    def eject(self) -> None:
        self.model.set_self_attention_guidance(enable=False)


class MultiDiffusion(Other):
    """Panoramas of half the width more, each of two views that overlap."""

    steps = 2

    def build(self) -> None:
        self.diffuse = SDXLMultiDiffusion(self.model)

    def denoise(self, x: Tensor, images: Sequence[int]) -> Tensor:
        x = torch.cat((x, self.noise(images, seed=9)[..., : self.latents // 2]), dim=-1)
        views = [self.view(left, images) for left in (0, self.latents // 2)]
        for step in self.model.steps[: self.steps]:
            x = self.diffuse(x, noise=x, step=step, targets=views)
        return x

    def view(self, left: int, images: Sequence[int]) -> SDXLDiffusionTarget:
        texts = self.texts(images)
        view = SDXLDiffusionTarget(
            size=(self.latents, self.latents), offset=(0, left), condition_scale=2.0,
            clip_text_embedding=texts["clip_text_embedding"],
        )  # fmt: skip
        view.pooled_text_embedding, view.time_ids = texts["pooled_text_embedding"], texts["time_ids"]
        return view


class Restarted(Other):
    """Noise that is added again on the way, to be removed once more."""

    steps = 4

    def build(self) -> None:
        pass

    def denoise(self, x: Tensor, images: Sequence[int]) -> Tensor:
        restart = Restart(self.model, num_steps=3, num_iterations=1, start_time=0.5)
        texts, number = self.texts(images), 20

        def own_noise(**_: Any) -> Tensor:
            nonlocal number
            number += 1
            return self.noise(images, seed=number)

        for step in self.model.steps[: self.steps]:
            x = self.model(x, step=step, condition_scale=2.0, **texts)
            if step == restart.start_step:
                with pytest.MonkeyPatch.context() as monkeypatch:
                    monkeypatch.setattr(torch, "randn_like", own_noise)
                    x = restart(x, condition_scale=2.0, **texts)
        assert number == 21
        return x


class AnyPassthrough(SelfAttentionInjectionPassthrough):
    """Refiners' own has the 13 residuals of Stable Diffusion 1.5; this one has those of its U-Net."""

    def _copy_diffusion_context(self, x: Tensor) -> Tensor:
        residuals = self.use_context("unet")["residuals"]
        self.set_context("self_attention_residuals_buffer", {"buffer": residuals})
        self.set_context("unet", {"residuals": [0.0] * len(residuals)})
        return x


Around = Callable[[int], AbstractContextManager[None]]


class ReferenceOnlyControl(Other):
    """A guide for each image. Images go through the U-Net one by one: it takes no others."""

    steps = 2

    def build(self) -> None:
        adapter: Any = ReferenceOnlyControlAdapter(self.model.unet, style_cfg=0.3)
        adapter._passthrough = [AnyPassthrough(self.model.unet)]
        self.adapters = [adapter]

    @torch.no_grad()
    def draw(self, images: Sequence[int] = range(len(PROMPTS)), around: Around = lambda image: nullcontext()) -> Tensor:
        """Draw images side by side.

        Args:
            images: The images.
            around: What is around a pass of an image.
        """
        latents = {image: self.noise([image]) for image in images}
        for step in self.model.steps[: self.steps]:
            for image, x in latents.items():
                guide, noise = self.noise([image], seed=11), self.noise([image], seed=12)
                guide = self.model.solver.add_noise(guide, noise=noise, step=step)
                self.adapters[0].set_controlnet_condition(guide.repeat(2, 1, 1, 1))
                with around(image):
                    latents[image] = self.model(x, step=step, condition_scale=2.0, **self.texts([image]))
        return torch.cat(list(latents.values()))
