"""The two architectures whose weights can be loaded: what they are made of, and what their weights are called."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from refiners.foundationals.clip.text_encoder import CLIPTextEncoderL
from refiners.foundationals.latent_diffusion import SD1UNet, SDXLUNet, StableDiffusion_1, StableDiffusion_XL
from refiners.foundationals.latent_diffusion.solvers import DDIM
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.text_encoder import DoubleTextEncoder

from style_aligned.models.checkpoints.autoencoder import PreciseSD1Autoencoder, PreciseSDXLAutoencoder
from style_aligned.models.checkpoints.initialization import NoInitialization
from style_aligned.models.checkpoints.keys import UNetStructure, autoencoder_modules, unet_modules
from style_aligned.models.checkpoints.text_keys import Source, open_clip_source, pooled_text_modules, text_modules
from style_aligned.models.checkpoints.tokenizer import put_exact_tokenizers

Layout = Literal["diffusers", "original", "refiners"]

LEFTOVERS = (  # of training, and constants that every implementation computes for itself
    r"(.+\.)?(v_pred|ztsnr)",
    r"model_ema\..+",
    r"denoiser\..+",
    r"first_stage_model\.(loss|model_ema)\..+",
    r"(betas|logvar|lvlb_weights|scale_factor|global_step)",
    r"([a-z0-9]+_)*alphas_cumprod(_prev)?",
    r"posterior_[a-z0-9_]+",
    r"(text_encoder|text_encoder_2)\.embeddings\.position_ids",
    r".+\.text_model\.embeddings\.position_ids",
    r"conditioner\.embedders\.1\.model\.(logit_scale|attn_mask)",
    r"cond_stage_model\.(logit_scale|text_projection)",
)


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

    def source(self, name: str, layout: Layout) -> Source:
        """Find a tensor of this encoder, named as in transformers, in a layout."""
        if layout == "diffusers":
            return Source(f"{self.diffusers}.{name}")
        if not self.open_clip:
            return Source(self.original + name)
        source = open_clip_source(name)
        return Source(self.original + source.key, third=source.third, transposed=source.transposed)

    def unused(self) -> tuple[str, ...]:
        """Give patterns of the tensors that no model needs."""
        if not self.skip_last:
            return ()
        names = rf"(encoder\.layers\.{self.layers - 1}|final_layer_norm|text_projection)(\..+)?"
        return (rf"{self.diffusers}\.{names}", re.escape(self.original) + names)


@dataclass(frozen=True)
class Architecture:
    """A kind of model.

    Attributes:
        name: What people call it.
        unet: The structure of its U-Net.
        text_encoders: Its text encoders.
        text_width: The width of the text embedding.
        build: Builds the model without weights, on the meta device.
    """

    name: str
    unet: UNetStructure
    text_encoders: tuple[TextEncoder, ...]
    text_width: int
    build: Callable[[], StableDiffusion_XL | StableDiffusion_1]

    def sources(self, targets: Iterable[str], layout: Layout) -> dict[str, Source]:
        """Find where each weight of the model comes from.

        Args:
            targets: The keys of the model's state dict.
            layout: The layout of the source.

        Returns:
            The source of each target.
        """
        if layout == "refiners":
            return {target: Source(target) for target in targets}
        modules: dict[str, tuple[str, TextEncoder | None]] = {}
        for names in [*unet_modules(self.unet), *autoencoder_modules()]:
            modules[names.refiners] = getattr(names, layout), None
        for encoder in self.text_encoders:
            modules |= {refiners: (name, encoder) for refiners, name in encoder.modules()}

        sources: dict[str, Source] = {}
        for target in targets:
            module, _, parameter = target.rpartition(".")
            name, encoder = modules[module]
            key = f"{name}.{parameter}"
            sources[target] = Source(key) if encoder is None else encoder.source(key, layout)
        return sources

    def is_unused(self, key: str) -> bool:
        """Say whether a tensor of a source is left out on purpose."""
        patterns = (*LEFTOVERS, *(pattern for encoder in self.text_encoders for pattern in encoder.unused()))
        return any(re.fullmatch(pattern, key) for pattern in patterns)


def canonical_key(key: str) -> str:
    """Give the one name of a tensor of diffusers that has had several over the years.

    Example:
        >>> canonical_key("text_encoder.text_model.final_layer_norm.bias")
        'text_encoder.final_layer_norm.bias'
        >>> canonical_key("vae.decoder.mid_block.attentions.0.proj_attn.weight")
        'vae.decoder.mid_block.attentions.0.to_out.0.weight'
    """
    key = re.sub(r"^(text_encoder(_2)?)\.text_model\.", r"\1.", key)
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        key = re.sub(rf"^(vae\..+\.attentions\.0)\.{old}\.", rf"\1.{new}.", key)
    return key


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
    build=build_stable_diffusion_1,
)
