"""Measure what alignment costs on the full-size U-Net of SDXL, with random weights.

    python scripts/benchmark.py [--latents 64] [--images 4] [--rounds 3] [--device cpu] [--reference-latents 32]

The contestants differ in self-attentions alone. So in each step with classifier-free guidance, every self-attention is
run by all of them, one after the other on the same input and in turns, and everything else once for all. That way what
disturbs a machine for some seconds disturbs all of them:
- plain: the U-Net without any adapter;
- bound: plain, and the attention of the targets to the reference's tokens, with nothing done to prepare them;
- ours: `StyleAlignedAdapter` of this package;
- built-in: `StyleAlignedAdapter` of Refiners;
and for the targets alone, in a step without their reference:
- targets' bound: the bound;
- replay: ours, their reference recorded before;
- smaller reference: the same, with a reference of another size, if that is given.
Printed are the medians over rounds of the time of a step (everything else, and the contestant's self-attentions), and
of the ratios of the same round.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, cast

import torch
from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion import SDXLUNet
from refiners.foundationals.latent_diffusion.style_aligned import StyleAlignedAdapter as RefinersStyleAlignedAdapter
from torch import Tensor

from style_aligned import ReferenceBank, StyleAlignedAdapter

BOUND_OF_REPLAY = "targets' bound"
ALL = "all contestants"

Contestant = Callable[[fl.Chain, Tensor], AbstractContextManager[object]]
"""Makes a chain that holds a self-attention its own for as long as the context lasts, given the input."""


class BoundAttention(fl.ScaledDotProductAttention):
    """What PyTorch's attention cannot do without: that of targets to twice as many tokens, taken from nowhere.

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
    start = now(images)
    y = unet(images.repeat(2, 1, 1, 1))
    return now(y) - start


class Race(fl.Module):
    """Takes the place of a self-attention, which all contestants run in turns."""

    chain: fl.Chain  # holds the self-attention

    contestants: ClassVar[dict[str, Contestant]] = {}
    seconds: ClassVar[dict[str, float]] = {}
    turn: ClassVar[int] = 0

    def forward(self, x: Tensor) -> Tensor:
        began = now(x)
        names = list(self.contestants)
        first = Race.turn % len(names)
        Race.turn += 1
        y = x
        for name in (*names[first:], *names[:first]):
            with self.contestants[name](self.chain, x):
                start = now(x)
                y = self.chain(x)
                self.seconds[name] += now(x) - start
        self.seconds[ALL] += now(x) - began
        return y


def now(x: Tensor) -> float:
    """Give the time at which everything that was started is done."""
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


def race(unet: SDXLUNet, contestants: dict[str, Contestant], *, rows: int, latents: int) -> dict[str, float]:
    """Do one step, and give the seconds that it takes each contestant."""
    Race.contestants, Race.seconds = contestants, dict.fromkeys((*contestants, ALL), 0.0)
    everything_else = step(unet, rows, latents) - Race.seconds[ALL]
    return {name: everything_else + Race.seconds[name] for name in contestants}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what alignment costs on the full-size U-Net of SDXL.")
    parser.add_argument("--latents", type=int, default=64, help="height and width of the latents")
    parser.add_argument("--images", type=int, default=4, help="images in the set, the reference included")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reference-latents", type=int, help="height and width of a smaller reference to replay too")
    options = parser.parse_args()
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    unet = random_unet(options.device, torch.bfloat16)
    for self_attention, parent in list(unet.walk(fl.SelfAttention)):
        site = Race()
        parent.replace(self_attention, site)
        site.chain = fl.Chain(self_attention)

    def bound(references: int) -> Contestant:
        @contextmanager
        def contest(chain: fl.Chain, x: Tensor) -> Generator[None, None, None]:
            parent = chain.ensure_find(fl.SelfAttention)
            attention = parent.layer("ScaledDotProductAttention", fl.ScaledDotProductAttention)
            replacement = BoundAttention(attention, len(x) // 2, references)
            parent.replace(attention, replacement)
            yield
            parent.replace(replacement, attention)

        return contest

    def ours(chain: fl.Chain, x: Tensor) -> AbstractContextManager[object]:
        return StyleAlignedAdapter(chain, set_size=options.images)

    @contextmanager
    def builtin(chain: fl.Chain, x: Tensor) -> Generator[None, None, None]:
        adapter = RefinersStyleAlignedAdapter(cast(Any, chain)).inject()
        yield
        adapter.eject()

    def replay(reference: int) -> Contestant:
        @contextmanager
        def contest(chain: fl.Chain, x: Tensor) -> Generator[None, None, None]:
            bank = ReferenceBank()
            tokens = x.shape[1] * reference**2 // options.latents**2
            with StyleAlignedAdapter(chain, set_size=options.images) as adapter:
                with adapter.record(bank):
                    chain(x[:2, :tokens])
                with adapter.replay(bank):
                    yield

        return contest

    of_sets: dict[str, Contestant] = {
        "plain": lambda chain, x: nullcontext(), "bound": bound(1), "ours": ours, "built-in": builtin,
    }  # fmt: skip
    of_targets: dict[str, Contestant] = {BOUND_OF_REPLAY: bound(0), "replay": replay(options.latents)}
    if (smaller := options.reference_latents) is not None:
        of_targets["smaller reference"] = replay(smaller)
    rows = 2 * options.images
    seconds: dict[str, list[float]] = {name: [] for name in (*of_sets, *of_targets)}
    for number in range(-1, options.rounds):  # the first one warms up
        for contestants, own_rows in ((of_sets, rows), (of_targets, rows - 2)):
            for name, duration in race(unet, contestants, rows=own_rows, latents=options.latents).items():
                if number >= 0:
                    seconds[name].append(duration)

    def ratio(name: str, other: str) -> str:
        ratios = [one / two for one, two in zip(seconds[name], seconds[other], strict=True)]
        return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"

    size = f"{options.images} images, {options.latents}x{options.latents} latents, bfloat16"
    print(f"{size}, {options.device}, torch {torch.__version__}, medians of {options.rounds} rounds (and their range)")
    print("| | rows | seconds a step | ratio to plain |\n|---|---|---|---|")
    for name, durations in seconds.items():
        relative = ratio(name, "plain") if name in of_sets else ""
        own_rows = rows if name in of_sets else rows - 2
        print(f"| {name} | {own_rows} | {statistics.median(durations):.2f} | {relative} |")
    print(f"ours / bound: {ratio('ours', 'bound')}")
    print(f"replay / its bound: {ratio('replay', BOUND_OF_REPLAY)}")
    if smaller is not None:
        print(f"replay of a reference of {smaller}x{smaller} / replay: {ratio('smaller reference', 'replay')}")


if __name__ == "__main__":
    main()
