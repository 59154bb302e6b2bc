"""Draw the pictures of docs/stacking.md: `python -m scripts.stacking_pictures --output docs/stacking`."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from refiners.fluxion import layers as fl
from refiners.fluxion.adapters.lora import LinearLora, LoraAdapter
from refiners.foundationals.latent_diffusion.freeu import SDFreeUAdapter
from refiners.foundationals.latent_diffusion.reference_only_control import (
    ReferenceOnlyControlAdapter,
    SelfAttentionInjectionPassthrough,
)
from refiners.foundationals.latent_diffusion.restart import Restart
from refiners.foundationals.latent_diffusion.solvers import DDIM, DPMSolver, Euler
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.multi_diffusion import (
    SDXLDiffusionTarget,
    SDXLMultiDiffusion,
)
from torch import Tensor

from style_aligned import ReferenceBank, Style, StyleAlignedAdapter, generate, load_model
from style_aligned.models.mini import Mini
from style_aligned.models.solvers import sample_noise
from style_aligned.sets.contact_sheet import Cell, Layout, Strip, contact_sheet

SEED, STEPS, GUIDANCE, SIZE = 5, 15, 2.0, (256, 256)
REFERENCE, TARGETS = "a fox, neon sign", ("an umbrella", "a rocket", "a castle")


def draw_set(
    model: Mini, reference: str = REFERENCE, targets: Sequence[str] = TARGETS, **options: Any
) -> list[Image.Image]:
    """Draw a set, the reference first."""
    style = Style.from_prompt(model, reference, seed=SEED, num_inference_steps=STEPS)
    images = [sample.image for sample in generate(model, style, targets, **options)]
    return [style.image(model), *images]


def sheet(rows: Mapping[str, Sequence[Image.Image]], longest: int = 128) -> Image.Image:
    """Lay out rows of images, each with its label."""
    strips = [
        [Strip([Cell(image, is_reference=index == 0) for index, image in enumerate(images)], label)]
        for label, images in rows.items()
    ]
    layout = Layout(cell=(longest, longest), margin=12, gap=8, line_gap=12, label=16)
    return contact_sheet(strips, layout=layout)


def side_by_side(images: Sequence[Image.Image], height: int = 192, gap: int = 12) -> Image.Image:
    """Put images of one height beside each other."""
    fitted = [image.resize((image.width * height // image.height, height)) for image in images]
    joined = Image.new("RGB", (sum(image.width + gap for image in fitted) - gap, height), "white")
    left = 0
    for image in fitted:
        joined.paste(image, (left, 0))
        left += image.width + gap
    return joined


def embed(model: Mini, *prompts: str) -> dict[str, Any]:
    """Return what a pass of the model takes of prompts."""
    embedding, pooled = model.compute_clip_text_embedding(list(prompts), [""] * len(prompts))
    time_ids = model.default_time_ids.repeat_interleave(len(prompts), dim=0)
    return {"clip_text_embedding": embedding, "pooled_text_embedding": pooled, "time_ids": time_ids}


def free_u(model: Mini) -> Image.Image:
    plain = draw_set(model)
    adapter = SDFreeUAdapter(model.unet, backbone_scales=[1.1, 1.2], skip_scales=[0.9, 0.6]).inject()
    with_free_u = draw_set(model)
    adapter.eject()
    return sheet({"StyleAligned": plain, "and FreeU": with_free_u})


def solvers(model: Mini) -> Image.Image:
    rows: dict[str, list[Image.Image]] = {}
    for name, solver in (("DDIM", DDIM), ("DPM-Solver++", DPMSolver), ("Euler", Euler)):
        model.solver = solver(num_inference_steps=STEPS)
        rows[name] = draw_set(model)
    model.solver = DDIM(num_inference_steps=STEPS)
    return sheet(rows)


def house() -> Image.Image:
    """Sketch a house in flat colours."""
    picture = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((72, 120, 184, 208), fill="#c86040")
    pen.polygon([(56, 124), (128, 48), (200, 124)], fill="#404860")
    pen.rectangle((112, 156, 144, 208), fill="#302820")
    return picture


def sketch(model: Mini) -> Image.Image:
    style = Style.from_prompt(model, REFERENCE, seed=SEED, num_inference_steps=STEPS)
    strengths = (0.5, 0.7, 0.9)
    images = generate(model, style, ["a house"] * 3, seeds=[6] * 3, init=house(), init_strength=strengths)
    cells = [Cell(style.image(model), "the reference", is_reference=True), Cell(house(), "the sketch")]
    cells += [Cell(sample.image, f"strength {strength}") for sample, strength in zip(images, strengths, strict=True)]
    return contact_sheet([[Strip(cells)]], layout=Layout(cell=(128, 128), margin=12, gap=8, text=13))


def inpainting(model: Mini) -> Image.Image:
    style = Style.from_prompt(model, REFERENCE, seed=SEED, num_inference_steps=STEPS)
    (before,) = [sample.image for sample in generate(model, style, ["a castle"])]
    mask = Image.new("L", SIZE)
    ImageDraw.Draw(mask).rectangle((128, 0, 255, 255), fill="white")
    (after,) = [
        sample.image for sample in generate(model, style, ["a palm tree"], seeds=[9], init=before, init_mask=mask)
    ]
    cells = [
        Cell(style.image(model), "the reference", is_reference=True), Cell(before, "a castle"),
        Cell(mask, "the mask"), Cell(after, "a palm tree"),
    ]  # fmt: skip
    return contact_sheet([[Strip(cells)]], layout=Layout(cell=(128, 128), margin=12, gap=8, text=13))


def restart(model: Mini) -> Image.Image:
    prompts = (REFERENCE, *TARGETS)
    rows: dict[str, list[Image.Image]] = {}
    for label, iterations in (("StyleAligned", 0), ("and Restart, twice", 2)):
        torch.manual_seed(SEED)  # pyright: ignore[reportUnknownMemberType]
        again = Restart(model, num_steps=5, num_iterations=iterations, start_time=0.5)
        x = torch.cat([sample_noise(model, SEED + index, SIZE) for index in range(len(prompts))])
        with StyleAlignedAdapter(model.unet, share_group_norm=True):
            for step in model.steps:
                x = model(x, step=step, condition_scale=GUIDANCE, **embed(model, *prompts))
                if step == again.start_step:
                    x = again(x, condition_scale=GUIDANCE, **embed(model, *prompts))
        rows[label] = model.lda.latents_to_images(x)
    return sheet(rows)


def draw_panorama(
    model: Mini, references: Sequence[str], views: Sequence[tuple[str, Sequence[float]]], stride: int = 24
) -> list[Image.Image]:
    """Draw a panorama, after its references.

    Args:
        model: The model.
        references: Their prompts.
        views: The prompt of each view from left to right, and what each reference counts for in it.
        stride: How many latents lie between one view and the next.
    """
    adapter, banks = StyleAlignedAdapter(model.unet, share_group_norm=True), [ReferenceBank() for _ in references]
    length = SIZE[0] // 8
    targets: list[SDXLDiffusionTarget] = []
    weights: dict[int, Sequence[float]] = {}
    for index, (prompt, shares) in enumerate(views):
        context = embed(model, prompt)
        target = SDXLDiffusionTarget(
            size=(length, length), offset=(0, stride * index), condition_scale=GUIDANCE,
            clip_text_embedding=context["clip_text_embedding"],
        )  # fmt: skip
        target.pooled_text_embedding, target.time_ids = context["pooled_text_embedding"], context["time_ids"]
        targets.append(target)
        weights[id(target)] = shares

    class Aligned(SDXLMultiDiffusion):
        def diffuse_target(self, x: Tensor, step: int, target: SDXLDiffusionTarget) -> Tensor:
            with adapter.replay(*banks, weights=weights[id(target)]):
                return super().diffuse_target(x, step, target)

    latents = [sample_noise(model, SEED + index, SIZE) for index in range(len(references))]
    x = sample_noise(model, 20, (SIZE[0], 8 * (length + stride * (len(views) - 1))))
    with adapter:
        for step in model.steps:
            for index, (bank, prompt) in enumerate(zip(banks, references, strict=True)):
                with adapter.record(bank):
                    latents[index] = model(latents[index], step=step, condition_scale=GUIDANCE, **embed(model, prompt))
            x = Aligned(model)(x, noise=x, step=step, targets=targets)
    return [model.lda.latents_to_image(image) for image in (*latents, x)]


def panorama(model: Mini) -> Image.Image:
    prompts = ("a castle", "a palm tree", "a house", "a pine tree", "a ferris wheel")
    return side_by_side(draw_panorama(model, [REFERENCE], [(prompt, [1.0]) for prompt in prompts]), height=128)


def styles(model: Mini) -> Image.Image:
    views = [("a pine tree", [1 - amount, amount]) for amount in (0.0, 0.25, 0.5, 0.75, 1.0)]
    first, second, wide = draw_panorama(model, [REFERENCE, "a fox, bold ink"], views)
    return side_by_side([first, wide, second], height=128)


class Passthrough(SelfAttentionInjectionPassthrough):
    """With as many residuals as the U-Net has: Refiners' own counts those of Stable Diffusion 1.5."""

    def _copy_diffusion_context(self, x: Tensor) -> Tensor:
        residuals = self.use_context("unet")["residuals"]
        self.set_context("self_attention_residuals_buffer", {"buffer": residuals})
        self.set_context("unet", {"residuals": [0.0] * len(residuals)})
        return x


def reference_only_control(model: Mini) -> Image.Image:
    guide, noise = model.lda.image_to_latents(house()), sample_noise(model, 30, SIZE)
    prompts = (REFERENCE, "a house", "a castle", "a car")
    rows: dict[str, list[Image.Image]] = {}
    for label, is_guided in (("StyleAligned", False), ("and a guide, the sketch above", True)):
        unet: Any = model.unet  # no SD1UNet
        control: Any = ReferenceOnlyControlAdapter(unet, style_cfg=0.5)
        control._passthrough = [Passthrough(unet)]
        bank, latents = ReferenceBank(), [sample_noise(model, SEED + index, SIZE) for index in range(len(prompts))]
        if is_guided:
            control.inject()
        with StyleAlignedAdapter(model.unet, share_group_norm=True) as adapter:
            for step in model.steps:
                if is_guided:
                    noised = model.solver.add_noise(guide, noise, step)
                    control.set_controlnet_condition(noised.repeat(2, 1, 1, 1))
                for index, prompt in enumerate(prompts):
                    with adapter.record(bank) if index == 0 else adapter.replay(bank):
                        latents[index] = model(
                            latents[index], step=step, condition_scale=GUIDANCE, **embed(model, prompt)
                        )
        if is_guided:
            control.eject()
        rows[label] = [model.lda.latents_to_image(x) for x in latents]
    return sheet(rows)


def train_lora(model: Mini, suffix: str, steps: int = 60) -> tuple[list[LinearLora], Callable[[bool], None]]:
    """Train a LoRA that draws as if all prompts ended in a suffix, by what the model itself predicts for those.

    Args:
        model: The model.
        suffix: The suffix.
        steps: The steps of training, of four images each.

    Returns:
        The LoRA's layers, and what puts them into the model (true) or takes them out (false).
    """
    torch.manual_seed(SEED)  # pyright: ignore[reportUnknownMemberType]
    linears = [
        (linear, parent)
        for attention in model.unet.layers(fl.Attention)
        for linear, parent in attention.walk(fl.Linear)
    ]
    loras = [LinearLora("suffix", linear.in_features, linear.out_features, rank=4) for linear, _ in linears]
    adapters = [(LoraAdapter(linear, lora), parent) for (linear, parent), lora in zip(linears, loras, strict=True)]

    def put(is_in: bool) -> None:
        for adapter, parent in adapters:
            adapter.inject(parent) if is_in else adapter.eject()

    model.requires_grad_(False)
    concepts = ("a fox", "an umbrella", "a rocket", "a castle", "a cat", "a car", "a cake", "an owl")
    optimizer = torch.optim.Adam([parameter for lora in loras for parameter in lora.parameters()], lr=4e-3)
    model.classifier_free_guidance = False
    for _ in range(steps):
        chosen = [concepts[int(index)] for index in torch.randint(len(concepts), (4,))]
        timestep = torch.randint(200, 999, (1,))
        x = torch.randn(4, 4, 32, 32)
        predictions: list[Tensor] = []
        for ending, is_in in ((f", {suffix}", False), ("", True)):
            embedding, pooled = model.clip_text_encoder([f"{concept}{ending}" for concept in chosen])
            put(is_in)
            with torch.set_grad_enabled(is_in):
                model.set_unet_context(
                    timestep=timestep, clip_text_embedding=embedding.detach(),
                    pooled_text_embedding=pooled.detach(), time_ids=model.default_time_ids.repeat(4, 1),
                )  # fmt: skip
                predictions.append(model.unet(x))
            if is_in:
                put(False)
        loss = torch.nn.functional.mse_loss(predictions[1], predictions[0])
        optimizer.zero_grad()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    model.classifier_free_guidance = True
    for lora in loras:
        lora.requires_grad_(False)
    return loras, put


def lora(model: Mini) -> Image.Image:
    with torch.enable_grad():
        loras, put = train_lora(model, "pixel art")
    rows = {"StyleAligned": draw_set(model)}
    put(True)
    for scale in (0.5, 1.0):
        for layer in loras:
            layer.scale = scale
        rows[f"and a LoRA of pixel art, scale {scale:g}"] = draw_set(model)
    put(False)
    return sheet(rows)


PICTURES: dict[str, Callable[[Mini], Image.Image]] = {
    "lora": lora, "free-u": free_u, "solvers": solvers, "sketch": sketch, "inpainting": inpainting, "restart": restart,
    "panorama": panorama, "styles": styles, "reference-only-control": reference_only_control,
}  # fmt: skip


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.stacking_pictures", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/stacking"))
    parser.add_argument("--only", choices=PICTURES, nargs="+", default=[*PICTURES])
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        model = load_model()
        assert isinstance(model, Mini)
        model.set_inference_steps(STEPS)
        picture = PICTURES[name](model)
        picture.convert("RGB").save(given.output / f"{name}.jpg", quality=85, optimize=True)


if __name__ == "__main__":
    main()
