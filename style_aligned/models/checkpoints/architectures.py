"""The two architectures whose weights can be loaded: what they are made of, and what their weights are called."""

import re
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass

from refiners.foundationals.clip.text_encoder import CLIPTextEncoderL
from refiners.foundationals.latent_diffusion import SD1UNet, SDXLUNet, StableDiffusion_1, StableDiffusion_XL
from refiners.foundationals.latent_diffusion.solvers import DDIM
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.text_encoder import DoubleTextEncoder

from style_aligned.models.checkpoints.autoencoder import PreciseSD1Autoencoder, PreciseSDXLAutoencoder
from style_aligned.models.checkpoints.initialization import NoInitialization
from style_aligned.models.checkpoints.keys import Layout, Names, UNetStructure, autoencoder_modules, unet_modules
from style_aligned.models.checkpoints.spelling import is_leftover
from style_aligned.models.checkpoints.text_keys import Source, open_clip_source, pooled_text_modules, text_modules
from style_aligned.models.checkpoints.tokenizer import put_exact_tokenizers


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder of an architecture.

    Attributes:
        refiners: Its path in Refiners' text encoder, with a trailing dot unless it is empty; its name if it is pooled.
        diffusers: Its folder in diffusers.
        original: Its path in a single file, with a trailing dot.
        layers: The number of its layers.
        skip_last: Whether the U-Net gets what comes out of the last layer but one, and the rest is of no use.
        pooled: Whether the rest computes a pooled embedding.
        open_clip: Whether a single file has it in OpenCLIP's spelling.
    """

    refiners: str
    diffusers: str
    original: str
    layers: int
    skip_last: bool = False
    pooled: bool = False
    open_clip: bool = False

    def modules(self) -> Iterator[tuple[str, str]]:
        """Pair its modules in Refiners with their names in transformers."""
        if self.pooled:
            names = pooled_text_modules(self.refiners, self.layers)
        else:
            names = text_modules(self.refiners, self.layers, skip_last=self.skip_last)
        for refiners, name in names:
            yield f"clip_text_encoder.{refiners}", name

    def sources(self, name: str, layout: Layout) -> list[Source]:
        """Return where a tensor, named as in transformers, can be in a layout: the usual place first."""
        if layout == "diffusers":
            return [Source(f"{self.diffusers}.{name}")]
        if not self.open_clip:
            return [Source(self.original + name)]
        source = open_clip_source(name)
        usual = Source(self.original + source.key, third=source.third, transposed=source.transposed)
        if name == "text_projection.weight":
            return [usual, Source(self.original + name)]
        return [usual, Source(re.sub(r"model\.$", "transformer.text_model.", self.original) + name)]

    def unused(self) -> tuple[str, ...]:
        """Return patterns of the tensors that this model does not need."""
        if not self.skip_last:
            return ()
        names = rf"(encoder\.layers\.{self.layers - 1}|final_layer_norm)\..+"
        return (rf"{self.diffusers}\.{names}", re.escape(self.original) + names)


@dataclass(frozen=True)
class Architecture:
    """A kind of model.

    Attributes:
        name: What people call it.
        unet: The structure of its U-Net.
        text_encoders: Its text encoders.
        text_width: The width of the text embedding.
        encoder_scale: The factor from the autoencoder's latents to the U-Net's.
        build: Builds the model without weights, on the meta device.
    """

    name: str
    unet: UNetStructure
    text_encoders: tuple[TextEncoder, ...]
    text_width: int
    encoder_scale: float
    build: Callable[[], StableDiffusion_XL | StableDiffusion_1]

    def sources(self, targets: Iterable[str], layout: Layout, present: Container[str] = ()) -> dict[str, Source]:
        """Find where each weight of the model comes from.

        Args:
            targets: The keys of the model's state dict.
            layout: The layout of the source.
            present: The tensors that the source has, for weights that can have several names.

        Returns:
            The source of each target.
        """
        if layout == "refiners":
            return {target: Source(target) for target in targets}
        modules: dict[str, tuple[Names, None] | tuple[str, TextEncoder]] = {}
        for names in [*unet_modules(self.unet), *autoencoder_modules()]:
            modules[names.refiners] = names, None
        for encoder in self.text_encoders:
            modules |= {refiners: (name, encoder) for refiners, name in encoder.modules()}

        sources: dict[str, Source] = {}
        for target in targets:
            module, _, parameter = target.rpartition(".")
            name, encoder = modules[module]
            if encoder is None:
                assert isinstance(name, Names)
                candidates = [Source(f"{spelled}.{parameter}") for spelled in name.spellings(layout)]
            else:
                candidates = encoder.sources(f"{name}.{parameter}", layout)
            sources[target] = next((source for source in candidates if source.key in present), candidates[0])
        return sources

    def is_unused(self, key: str) -> bool:
        """Say whether a tensor of a source is left out on purpose."""
        patterns = (pattern for encoder in self.text_encoders for pattern in encoder.unused())
        return is_leftover(key) or any(re.fullmatch(pattern, key) for pattern in patterns)


def build_stable_diffusion_xl() -> StableDiffusion_XL:
    with NoInitialization():
        model = StableDiffusion_XL(
            unet=SDXLUNet(in_channels=4, device="meta"),
            lda=PreciseSDXLAutoencoder(device="meta"),
            clip_text_encoder=DoubleTextEncoder(device="meta"),
            solver=DDIM(num_inference_steps=1),
            device="meta",
        )
    put_exact_tokenizers(model.clip_text_encoder)
    return model


def build_stable_diffusion_1() -> StableDiffusion_1:
    with NoInitialization():
        model = StableDiffusion_1(
            unet=SD1UNet(in_channels=4, device="meta"),
            lda=PreciseSD1Autoencoder(device="meta"),
            clip_text_encoder=CLIPTextEncoderL(device="meta"),
            solver=DDIM(num_inference_steps=1),
            device="meta",
        )
    put_exact_tokenizers(model.clip_text_encoder)
    return model


STABLE_DIFFUSION_XL = Architecture(
    name="Stable Diffusion XL",
    unet=UNetStructure(
        depths=(0, 2, 10),
        middle_depth=10,
        cross_attention="SDXLCrossAttention",
        projection="Linear",
        time="TimestepEncoder.Sum.Chain.RangeEncoder",
        middle="MiddleBlock",
        out="OutputBlock",
        has_text_time_embedding=True,
    ),
    text_encoders=(
        TextEncoder(
            refiners="Parallel.CLIPTextEncoderL.",
            diffusers="text_encoder",
            original="conditioner.embedders.0.transformer.text_model.",
            layers=12,
            skip_last=True,
        ),
        TextEncoder(
            refiners="CLIPTextEncoderG",
            diffusers="text_encoder_2",
            original="conditioner.embedders.1.model.",
            layers=32,
            pooled=True,
            open_clip=True,
        ),
    ),
    text_width=2048,
    encoder_scale=0.13025,
    build=build_stable_diffusion_xl,
)
STABLE_DIFFUSION_1 = Architecture(
    name="Stable Diffusion 1.5",
    unet=UNetStructure(
        depths=(1, 1, 1, 0),
        middle_depth=1,
        cross_attention="CLIPLCrossAttention",
        projection="Conv2d",
        time="TimestepEncoder.RangeEncoder",
        middle="Sum.MiddleBlock",
        out="Chain",
        has_text_time_embedding=False,
    ),
    text_encoders=(
        TextEncoder(
            refiners="",
            diffusers="text_encoder",
            original="cond_stage_model.transformer.text_model.",
            layers=12,
        ),
    ),
    text_width=768,
    encoder_scale=0.18215,
    build=build_stable_diffusion_1,
)
