"""Measure what large sets cost, with the reference recorded once a step and with it in every batch.

    python scripts/benchmark_sets.py [--rounds 3]           time, on the embedded model, from prompts to images
    python scripts/benchmark_sets.py --full-size            time, on the full-size U-Net of SDXL with random weights
    python scripts/benchmark_sets.py --memory               peak memory of one batch, 33 and 330 images

Batches hold 4 images. Where the reference is in every batch, they hold it and 3 targets, as in Refiners' own loop.
Printed are medians, and medians of the ratios of the same round.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from benchmark import random_unet, step as unet_step

from style_aligned import ReferenceBank, Style, StyleAlignedAdapter, generate
from style_aligned.checkpoints import load_model
from style_aligned.denoising import Model, embed, predict_noise, sample_noise, stack

BATCH_SIZE = 4
TARGETS = 32  # and their reference
PROMPT, REFERENCE = "a rocket, neon sign", "a fox, neon sign"


def chunks(count: int, size: int) -> Iterator[int]:
    """Give the sizes of the batches that make up so many images."""
    for start in range(0, count, size):
        yield min(size, count - start)


def record_once(model: Model, steps: int) -> None:
    style = Style.from_prompt(model, REFERENCE, num_inference_steps=steps)
    for _ in generate(model, style, [PROMPT] * TARGETS, batch_size=BATCH_SIZE):
        pass


def in_every_batch(model: Model, steps: int) -> None:
    seed = 1
    with StyleAlignedAdapter(model.unet):
        for targets in chunks(TARGETS, BATCH_SIZE - 1):
            text = stack([embed(model, prompt) for prompt in (REFERENCE, *[PROMPT] * targets)])
            solver = model.solver.rebuild(num_inference_steps=steps, first_inference_step=0)
            x = torch.cat([sample_noise(model, index, (256, 256)) for index in (0, *range(seed, seed + targets))])
            for step in solver.inference_steps:
                x = solver(x, predict_noise(model, solver, x, step, text=text, condition_scale=5.0), step=step)
            for index in range(1 if seed > 1 else 0, len(x)):  # the reference's image is needed once
                model.lda.latents_to_image(x[index : index + 1])
            seed += targets


def compare(ours: Callable[[], None], theirs: Callable[[], None], *, rounds: int, warm_up: bool, title: str) -> None:
    """Run both, one after the other, and print how long they take."""
    seconds: dict[str, list[float]] = {"recorded once a step": [], "in every batch": []}
    for index in range(rounds + warm_up):
        for name, contestant in zip(seconds, (ours, theirs), strict=True):
            start = time.perf_counter()
            contestant()
            if index >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    once, every = seconds.values()
    ratios = [b / a for a, b in zip(once, every, strict=True)]
    print(f"{title}, {torch.get_num_threads()} threads, torch {torch.__version__}, medians of {rounds}")
    print("| the reference | seconds | times as long |\n|---|---|---|")
    print(f"| recorded once a step | {statistics.median(once):.1f} | 1 |")
    print(f"| in every batch | {statistics.median(every):.1f} | {statistics.median(ratios):.2f} |", flush=True)


@torch.no_grad()
def compare_mini(rounds: int, steps: int = 15) -> None:
    model = load_model("mini")
    compare(
        lambda: record_once(model, steps),
        lambda: in_every_batch(model, steps),
        rounds=rounds,
        warm_up=True,
        title=f"embedded model, {TARGETS + 1} images, batches of {BATCH_SIZE}, {steps} steps",
    )


@torch.no_grad()
def compare_full_size(steps: int, latents: int) -> None:
    unet = random_unet("cpu", torch.bfloat16)
    bank = ReferenceBank()

    def once() -> None:
        with StyleAlignedAdapter(unet) as adapter:
            for _ in range(steps):
                with adapter.record(bank):
                    unet_step(unet, 2, latents)
                with adapter.replay(bank):
                    for targets in chunks(TARGETS, BATCH_SIZE):
                        unet_step(unet, 2 * targets, latents)

    def every() -> None:
        with StyleAlignedAdapter(unet):
            for _ in range(steps):
                for targets in chunks(TARGETS, BATCH_SIZE - 1):
                    unet_step(unet, 2 * (targets + 1), latents)

    unet_step(unet, 2 * BATCH_SIZE, latents)  # warms up
    title = f"U-Net of SDXL, bfloat16, {TARGETS + 1} images of {latents}x{latents} latents, {steps} steps"
    compare(once, every, rounds=1, warm_up=False, title=title)


def measure_memory(images: int, steps: int = 3) -> None:
    """Generate images and print by how many MiB that made the process grow, at most, and its peak."""
    model = load_model("mini")
    style = Style.from_prompt(model, REFERENCE, num_inference_steps=steps)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in generate(model, style, [PROMPT] * (images - 1), batch_size=BATCH_SIZE):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{(peak - before) / 1024:.0f} {peak / 1024:.0f}")


def compare_memory(rounds: int) -> None:
    sizes = (BATCH_SIZE + 1, 33, 330)
    peaks: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            command = [sys.executable, __file__, "--images", str(size)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peaks[size].append(float(output.split()[1]))
    print(f"peak resident memory, embedded model, batches of {BATCH_SIZE}, medians of {rounds} processes each")
    print("| images | MiB | ratio |\n|---|---|---|")
    first = statistics.median(peaks[sizes[0]])
    for size, values in peaks.items():
        note = " (one batch)" if size == sizes[0] else ""
        print(f"| {size}{note} | {statistics.median(values):.0f} | {statistics.median(values) / first:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what large sets cost.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full-size", action="store_true", help="use the U-Net of SDXL, once")
    parser.add_argument("--steps", type=int, default=2, help="steps of the full-size U-Net")
    parser.add_argument("--latents", type=int, default=32, help="height and width of its latents")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--images", type=int, help="only generate that many, and print growth and peak in MiB")
    options = parser.parse_args()
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    if options.images is not None:
        measure_memory(options.images)
    elif options.memory:
        compare_memory(options.rounds)
    elif options.full_size:
        compare_full_size(options.steps, options.latents)
    else:
        compare_mini(options.rounds)


if __name__ == "__main__":
    main()
