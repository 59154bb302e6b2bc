"""Measure what large sets cost, with the reference recorded once a step and with it in every batch.

    python scripts/benchmark_sets.py [--rounds 5]           time, on the embedded model, from prompts to images
    python scripts/benchmark_sets.py --full-size            time, on the full-size U-Net of SDXL with random weights
    python scripts/benchmark_sets.py --lora --control       either of them, with a LoRA and a ControlLora beside it
    python scripts/benchmark_sets.py --memory               peak memory of one batch, 33, 330 and 990 images

Batches hold 4 images. Where the reference is in every batch, they hold it and 3 targets, as in Refiners' own loop.
Printed are medians, and medians of the ratios of the same round, with their range.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.adapters.lora import LinearLora, LoraAdapter
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.control_lora import ControlLoraAdapter

sys.path.insert(0, str(Path(__file__).parent))
from benchmark import random_unet, step as unet_step

from style_aligned import ReferenceBank, Style, StyleAlignedAdapter, generate
from style_aligned.adapter.places import walk
from style_aligned.models.checkpoints import load_model
from style_aligned.models.denoising import predict_noise
from style_aligned.models.model import Model
from style_aligned.models.solvers import sample_noise
from style_aligned.models.text import embed, stack

BATCH_SIZE = 4
TARGETS = 32  # and their reference: as many as `generate` has on their way at a time
PROMPT, REFERENCE = "a rocket, neon sign", "a fox, neon sign"

RANK = 16  # of the LoRA

OnStep = Callable[[int], None]


def put_beside(unet: Any, *, lora: bool, control: bool, latents: int) -> str:
    """Inject a random LoRA into all attentions, and a random ControlLora, whose picture all images follow.

    Returns:
        What they are, for the title.
    """
    beside = ""
    if control:  # first: it copies the U-Net
        adapter = ControlLoraAdapter("control", unet, scale=0.1).inject()
        adapter.set_condition(torch.rand(1, 3, 8 * latents, 8 * latents, device=unet.device, dtype=unet.dtype))
        beside += ", with a ControlLora"
    if lora:
        attentions = [attention for attention, _ in walk(unet, fl.Attention)]
        linears = [found for attention in attentions for found in list(attention.walk(fl.Linear))]
        for linear, parent in linears:
            layer = LinearLora(
                "lora", linear.in_features, linear.out_features, RANK, device=unet.device, dtype=unet.dtype
            )
            torch.nn.init.normal_(layer.up.weight, std=0.01)
            LoraAdapter(linear, layer).inject(parent)
        beside += f", with a LoRA of rank {RANK} in {len(linears)} layers"
    return beside


def batches_of(size: int) -> list[int]:
    """Give the numbers of targets in the batches that make up a set."""
    return [min(size, TARGETS - start) for start in range(0, TARGETS, size)]


def record_once(model: Model, steps: int, on_step: OnStep) -> None:
    reference = Style.from_prompt(model, REFERENCE, num_inference_steps=steps)
    for _ in generate(model, reference, [PROMPT] * TARGETS, batch_size=BATCH_SIZE, on_step=on_step):
        pass
    reference.image()


def in_every_batch(model: Model, steps: int) -> Iterator[int]:
    seed = 1
    style = Style.from_prompt(model, REFERENCE, num_inference_steps=steps)
    with StyleAlignedAdapter(model.unet, **style.options):
        for targets in batches_of(BATCH_SIZE - 1):
            text = stack([embed(model, prompt) for prompt in (REFERENCE, *[PROMPT] * targets)])
            solver = model.solver.rebuild(num_inference_steps=steps, first_inference_step=0)
            x = torch.cat([sample_noise(model, index, (256, 256)) for index in (0, *range(seed, seed + targets))])
            for step in solver.inference_steps:
                x = solver(
                    x,
                    predict_noise(model, solver, x, step, text=text, condition_scale=style.condition_scale),
                    step=step,
                )
                yield len(x)
            for index in range(1 if seed > 1 else 0, len(x)):  # the reference's image is needed once
                model.lda.latents_to_image(x[index : index + 1])
            seed += targets


def run_in_turns(ours: Callable[[OnStep], None], theirs: Iterator[int], steps: int) -> tuple[float, float]:
    """Run both, in turns of a batch: what slows the machine down for some seconds slows both of them down.

    Ours decodes all images at the end, theirs after each batch.

    Args:
        ours: Runs ours, and calls what it is given after each batch with the number of images in it.
        theirs: Runs theirs, and gives the number of images after each batch.
        steps: The number of steps.

    Returns:
        The seconds that they take.
    """
    total, their_total = steps * (TARGETS + 1), steps * (TARGETS + len(batches_of(BATCH_SIZE - 1)))
    done, their_done, their_seconds = 0, 0, 0.0

    def take_turns(images: int) -> None:
        nonlocal done, their_done, their_seconds
        done += images
        start = time.perf_counter()
        while their_done / their_total < done / total:
            their_done += next(theirs)
        their_seconds += time.perf_counter() - start

    start = time.perf_counter()
    ours(take_turns)
    our_seconds = time.perf_counter() - start - their_seconds
    start = time.perf_counter()
    rest = list(theirs)
    their_seconds += time.perf_counter() - start
    assert rest == [], "they have as many batches as was thought, and are at the images of the last one"
    return our_seconds, their_seconds


def print_table(seconds: list[tuple[float, float]], title: str) -> None:
    """Print the medians, and the median of the ratios and their range."""
    ratios = [every / once for once, every in seconds]
    once, every = (statistics.median(column) for column in zip(*seconds, strict=True))
    print(f"{title}, {torch.get_num_threads()} threads, torch {torch.__version__}, medians of {len(seconds)}")
    print("| the reference | seconds | times as long |\n|---|---|---|")
    print(f"| recorded once a step | {once:.1f} | 1 |")
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    print(f"| in every batch | {every:.1f} | {statistics.median(ratios):.2f}{spread} |", flush=True)


@torch.no_grad()
def compare_mini(rounds: int, steps: int, lora: bool, control: bool) -> None:
    model, their_model = load_model("mini"), load_model("mini")
    titles = [put_beside(one.unet, lora=lora, control=control, latents=32) for one in (model, their_model)]
    once = partial(record_once, model, steps)
    seconds = [run_in_turns(once, in_every_batch(their_model, steps), steps) for _ in range(1 + rounds)]
    title = f"embedded model, {TARGETS + 1} images, batches of {BATCH_SIZE}, {steps} steps{titles[0]}"
    print_table(seconds[1:], title)  # the first round warms up


@torch.no_grad()
def compare_full_size(rounds: int, steps: int, latents: int, lora: bool, control: bool) -> None:
    unet = random_unet("cpu", torch.bfloat16)
    beside = put_beside(unet, lora=lora, control=control, latents=latents)
    adapter, bank = StyleAlignedAdapter(unet), ReferenceBank()

    def once(on_step: OnStep) -> None:
        for _ in range(steps):
            with adapter.record(bank):
                unet_step(unet, 2, latents)
            on_step(1)
            for targets in batches_of(BATCH_SIZE):
                with adapter.replay(bank):
                    unet_step(unet, 2 * targets, latents)
                on_step(targets)

    def every() -> Iterator[int]:
        for targets in batches_of(BATCH_SIZE - 1):
            for _ in range(steps):
                unet_step(unet, 2 * (targets + 1), latents)
                yield targets + 1

    unet_step(unet, 2 * BATCH_SIZE, latents)  # warms up
    with adapter:
        seconds = [run_in_turns(once, every(), steps) for _ in range(rounds)]
    title = f"U-Net of SDXL, bfloat16, {TARGETS + 1} images of {latents}x{latents} latents, steps: {steps}{beside}"
    print_table(seconds, title)


def peak_memory() -> float:
    """Give the most memory that this process has had, in MiB.

    On Linux, `getrusage` counts that of the process that has started it too.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_memory(images: int, steps: int = 3) -> None:
    """Generate images and print by how many MiB that made the process grow, at most, and its peak."""
    model = load_model("mini")
    reference = Style.from_prompt(model, REFERENCE, num_inference_steps=steps)
    before = peak_memory()
    for _ in generate(model, reference, [PROMPT] * (images - 1), batch_size=BATCH_SIZE):
        pass
    peak = peak_memory()
    print(f"{peak - before:.0f} {peak:.0f}")


def compare_memory(rounds: int) -> None:
    sizes = (BATCH_SIZE + 1, 33, 330, 990)
    grown: dict[int, list[float]] = {size: [] for size in sizes}
    peaks: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            command = [sys.executable, __file__, "--images", str(size)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            growth, peak = map(float, output.split())
            grown[size].append(growth)
            peaks[size].append(peak)
    print(f"peak resident memory, embedded model, batches of {BATCH_SIZE}, medians of {rounds} processes each")
    print("| images | MiB | ratio | of which it grew while they were generated |\n|---|---|---|---|")
    first = statistics.median(peaks[sizes[0]])
    for size in sizes:
        note = " (one batch)" if size == sizes[0] else ""
        peak, growth = statistics.median(peaks[size]), statistics.median(grown[size])
        print(f"| {size}{note} | {peak:.0f} | {peak / first:.3f} | {growth:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what large sets cost.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full-size", action="store_true", help="use the U-Net of SDXL")
    parser.add_argument("--steps", type=int, help="steps in each round; by default 15, and 1 of the full-size U-Net")
    parser.add_argument("--latents", type=int, default=64, help="height and width of its latents")
    parser.add_argument("--lora", action="store_true", help="put a LoRA into all attentions")
    parser.add_argument("--control", action="store_true", help="put a ControlLora beside the U-Net")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--images", type=int, help="only generate that many, and print growth and peak in MiB")
    options = parser.parse_args()
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    if options.images is not None:
        measure_memory(options.images)
    elif options.memory:
        compare_memory(options.rounds)
    elif options.full_size:
        compare_full_size(options.rounds, options.steps or 1, options.latents, options.lora, options.control)
    else:
        compare_mini(options.rounds, options.steps or 15, options.lora, options.control)


if __name__ == "__main__":
    main()
