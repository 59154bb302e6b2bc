"""The calls of this package that the golden cases make: a change of the interface changes this module alone."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion.solvers import Solver
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.text_encoder import DoubleTextEncoder
from torch import Tensor

from style_aligned import ReferenceBank, Style, StyleAlignedAdapter, generate
from style_aligned.models.mini import Mini, MiniAutoencoder, MiniDoubleTextEncoder, MiniUNet
from style_aligned.models.mini.autoencoder import Decoder, Encoder
from style_aligned.models.mini.text_encoder import MiniTextEncoderG, MiniTextEncoderL, MiniTokenizer
from tests.models.checkpoints.narrow import build_narrow_1, build_narrow_xl

WORDS = ["a", "cat", "dog", "fox", "ink", "neon", "rocket", "sign"]


class GoldenTextEncoder(MiniDoubleTextEncoder):
    """The embedded model's text encoders, of widths and depths that do not depend on defaults."""

    def __init__(self) -> None:
        DoubleTextEncoder.__init__(
            self,
            MiniTextEncoderL(MiniTokenizer(WORDS, sequence_length=12), embedding_dim=32, num_layers=2),
            MiniTextEncoderG(MiniTokenizer(WORDS, sequence_length=12), embedding_dim=32, num_layers=3),
            projection=fl.Linear(32, 32, bias=False),
        )


class GoldenAutoencoder(MiniAutoencoder):
    """The embedded model's autoencoder, of widths and a scale that do not depend on defaults."""

    encoder_scale = 0.5

    def __init__(self) -> None:
        fl.Chain.__init__(self, Encoder(channels=(16, 24)), Decoder(channels=(24, 16, 8)))


def build_mini() -> Mini:
    unet = MiniUNet(in_channels=4, channels=(16, 32, 48), context_dim=64, pooled_dim=32, timestep_dim=48)
    return Mini(unet=unet, lda=GoldenAutoencoder(), clip_text_encoder=GoldenTextEncoder())


def build(name: str) -> Any:
    """Build a model, the weights of which are not set yet: "mini", or a narrow "sd1" or "sdxl"."""
    return {"mini": build_mini, "sd1": build_narrow_1, "sdxl": build_narrow_xl}[name]()


def make_style(model: Any, prompt: str, **settings: Any) -> Style:
    return make_reference(model, prompt, **settings).complete()


def make_reference(model: Any, prompt: str, **settings: Any) -> Style:
    """Start a reference, the steps of which `run_generate` does."""
    # without the options that are recommended for the embedded model
    options = {"share_group_norm": False, **settings.pop("options")}
    return Style.from_prompt(model, prompt, options=options, **settings)


def style_latents(style: Style) -> Tensor:
    """The latents of the reference before each step, and after the last one."""
    return style.latents


def style_pictures(model: Any, style: Style) -> list[Any]:
    """The reference's image and its preview."""
    return [style.image(model), style.preview]


def save_style(style: Style, path: Path) -> None:
    style.save(path)


def load_style(path: Path) -> Style:
    return Style.load(path)


def run_generate(model: Any, style: Style, prompts: Sequence[str], **arguments: Any) -> tuple[Tensor, list[Any]]:
    """Generate, and return the latents and the images."""
    samples = list(generate(model, style, prompts, **arguments))
    return torch.cat([sample.latents for sample in samples]), [sample.image for sample in samples]


def run_generate_unaligned(model: Any, style: Style, prompts: Sequence[str], **arguments: Any) -> Tensor:
    """Generate the same unaligned, and return the latents."""
    return torch.cat([sample.latents for sample in generate(model, style, prompts, aligned=False, **arguments)])


def run_loop(
    model: Any,
    x: Tensor,
    solver: Solver,
    context: dict[str, Tensor],
    condition_scale: float,
    options: dict[str, Any] | None,
) -> Tensor:
    """The loop that Refiners' users write, on a whole batch: with the adapter, or without it where options is None."""
    model.solver = solver
    x = solver.scale_model_input(x, step=-1)
    with torch.no_grad(), nullcontext() if options is None else StyleAlignedAdapter(model.unet, **options):
        for step in model.steps:
            x = model(x, step=step, condition_scale=condition_scale, **context)
    return x


def run_replay(model: Any, references: Tensor, targets: Tensor, contexts: list[dict[str, Tensor]]) -> Tensor:
    """Have references go through the U-Net, then targets alone, with the contexts of both. Return both outputs."""
    outputs: list[Tensor] = []
    with torch.no_grad(), StyleAlignedAdapter(model.unet) as adapter:
        bank = ReferenceBank()
        for mode, x, context in zip((adapter.record, adapter.replay), (references, targets), contexts, strict=True):
            with mode(bank):
                model.set_unet_context(**context)
                outputs.append(model.unet(x))
    return torch.cat(outputs)
