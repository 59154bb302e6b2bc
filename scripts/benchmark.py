"""Measure what alignment costs on the full-size U-Net of SDXL, with random weights.

    python scripts/benchmark.py [--latents 64] [--images 4] [--rounds 3] [--device cpu]

In each round every contestant does one step with classifier-free guidance, one after the other:
- plain: the U-Net without any adapter;
- bound: plain, and the attention of the targets to the reference's tokens, with nothing done to prepare them;
- ours: `StyleAlignedAdapter` of this package;
- built-in: `StyleAlignedAdapter` of Refiners;
- targets' bound: the bound for the targets alone, without their reference;
- replay: ours for the targets alone, their reference recorded before.
Printed are medians, and medians of the ratios of the same round: to plain, and of replay to the targets' bound.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import ClassVar

import torch
from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion import SDXLUNet
from refiners.foundationals.latent_diffusion.style_aligned import StyleAlignedAdapter as RefinersStyleAlignedAdapter
from torch import Tensor

from style_aligned import ReferenceBank, StyleAlignedAdapter

BOUND_OF_REPLAY = "targets' bound"


class BoundAttention(fl.ScaledDotProductAttention):
    """The attention that no implementation can do without: targets to twice as many tokens, taken from nowhere.

    Args:
        attention: The plain attention.
        set_size: The number of rows that share a reference, the first of them.
        references: The number of references in each set: none where targets are alone.
    """

    shared: ClassVar[dict[tuple[int, ...], Tensor]] = {}  # keys and values, made before anything is measured

    def __init__(self, attention: fl.ScaledDotProductAttention, set_size: int, references: int = 1) -> None:
        super().__init__(num_heads=attention.num_heads)
        self.attention = attention
        self.set_size = set_size
        self.references = references

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shape = (2, self.set_size - self.references, 2 * query.shape[1], query.shape[2])
        if shape not in self.shared:
            self.shared[shape] = torch.randn(shape, device=query.device, dtype=query.dtype)
        shared_key, shared_value = self.shared[shape]
        attended: list[Tensor] = []
        for start in range(0, len(query), self.set_size):
            first_target = start + self.references
            reference, targets = slice(start, first_target), slice(first_target, start + self.set_size)
            if self.references:
                attended.append(self.attention(query[reference], key[reference], value[reference]))
            attended.append(self.attention(query[targets], shared_key, shared_value))
        return torch.cat(attended)


def random_unet(device: str, dtype: torch.dtype) -> SDXLUNet:
    """Build the U-Net without initializing it twice."""
    unet = SDXLUNet(in_channels=4, device="meta", dtype=dtype)
    unet.to_empty(device=device)
    noise = torch.randn(1 << 20, device=device)
    for parameter in unet.parameters():
        scaled = noise / max(parameter[0].numel(), 2) ** 0.5
        parameter.copy_(
            scaled.repeat(-(-parameter.numel() // len(noise)))[: parameter.numel()].reshape(parameter.shape)
        )
    return unet


def step(unet: SDXLUNet, rows: int, latents: int) -> float:
    """Do one step, and give the seconds that it takes."""
    device, dtype = unet.device, unet.dtype
    images = torch.randn(rows // 2, 4, latents, latents, device=device, dtype=dtype)
    unet.set_timestep(torch.tensor([601], device=device))
    unet.set_clip_text_embedding(torch.randn(rows, 77, 2048, device=device, dtype=dtype))
    unet.set_pooled_text_embedding(torch.randn(rows, 1280, device=device, dtype=dtype))
    unet.set_time_ids(torch.tensor([[1024, 1024, 0, 0, 1024, 1024]], device=device).repeat(rows, 1))
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    unet(images.repeat(2, 1, 1, 1))
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what alignment costs on the full-size U-Net of SDXL.")
    parser.add_argument("--latents", type=int, default=64, help="height and width of the latents")
    parser.add_argument("--images", type=int, default=4, help="images in the set, the reference included")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    unet = random_unet(options.device, torch.bfloat16)
    rows = 2 * options.images
    bank = ReferenceBank()

    def plain() -> float:
        return step(unet, rows, options.latents)

    def bound_of(rows: int, references: int) -> float:
        sites = [(parent, layer) for layer, parent in unet.walk(fl.ScaledDotProductAttention)]
        edits = [
            (parent, layer, BoundAttention(layer, rows // 2, references))
            for parent, layer in sites
            if isinstance(parent, fl.SelfAttention)
        ]
        for parent, old_layer, new_layer in edits:
            parent.replace(old_layer, new_layer)
        seconds = step(unet, rows, options.latents)
        for parent, old_layer, new_layer in edits:
            parent.replace(new_layer, old_layer)
        return seconds

    def bound() -> float:
        return bound_of(rows, references=1)

    def targets_bound() -> float:
        return bound_of(rows - 2, references=0)

    def ours() -> float:
        with StyleAlignedAdapter(unet):
            return step(unet, rows, options.latents)

    def builtin() -> float:
        adapter = RefinersStyleAlignedAdapter(unet).inject()
        seconds = step(unet, rows, options.latents)
        adapter.eject()
        return seconds

    def replay() -> float:
        with StyleAlignedAdapter(unet) as adapter:
            if bank.latents_shape is None:
                with adapter.record(bank):
                    step(unet, 2, options.latents)
            with adapter.replay(bank):
                return step(unet, rows - 2, options.latents)

    contestants: dict[str, Callable[[], float]] = {
        "plain": plain, "bound": bound, "ours": ours, "built-in": builtin, BOUND_OF_REPLAY: targets_bound,
        "replay": replay,
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in (bound, targets_bound, replay):  # what they need is made once, not measured
        contestant()
    for _ in range(options.rounds):
        for name, contestant in contestants.items():
            seconds[name].append(contestant())

    def ratio(name: str, other: str) -> float:
        return statistics.median(one / two for one, two in zip(seconds[name], seconds[other], strict=True))

    size = f"{options.images} images, {options.latents}x{options.latents} latents, bfloat16"
    print(f"{size}, {options.device}, torch {torch.__version__}, medians of {options.rounds} rounds")
    print("| | rows | seconds a step | ratio to plain |\n|---|---|---|---|")
    for name, durations in seconds.items():
        is_alone = name in (BOUND_OF_REPLAY, "replay")
        relative = "" if is_alone else f"{ratio(name, 'plain'):.3f}"
        print(f"| {name} | {rows - 2 * is_alone} | {statistics.median(durations):.2f} | {relative} |")
    print(f"ours / bound: {ratio('ours', 'bound'):.3f}")
    print(f"replay / its bound: {ratio('replay', BOUND_OF_REPLAY):.3f}")


if __name__ == "__main__":
    main()
