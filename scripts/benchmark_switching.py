"""Measure what it costs to switch between recording and replaying, and to inject and eject, on the U-Net of SDXL.

    python scripts/benchmark_switching.py [--rounds 200]

At each step `generate` switches to recording and back, then to replaying and back. Nothing is computed: the U-Net is on
the meta device. Printed are medians over rounds, in milliseconds.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion import SDXLUNet

from style_aligned import ReferenceBank, StyleAlignedAdapter


def milliseconds(action: Callable[[], object], rounds: int) -> float:
    """Return the median time that an action takes."""
    durations: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        durations.append(time.perf_counter() - start)
    return 1000 * statistics.median(durations)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what switching between recording and replaying costs.")
    parser.add_argument("--rounds", type=int, default=200)
    rounds: int = parser.parse_args().rounds
    unet = SDXLUNet(in_channels=4, device="meta", dtype=torch.float16)
    adapter, bank = StyleAlignedAdapter(unet, share_group_norm=True), ReferenceBank()

    def switch() -> None:
        with adapter.record(bank):
            pass
        with adapter.replay(bank):
            pass

    def inject_and_eject() -> None:
        adapter.inject()
        adapter.eject()

    places = len(list(unet.layers(fl.SelfAttention)))
    print(f"{places} self-attentions, torch {torch.__version__}, medians of {rounds} rounds, in milliseconds")
    print(f"inject and eject: {milliseconds(inject_and_eject, max(1, rounds // 20)):.1f}")
    with adapter:
        print(f"switches of a step: {milliseconds(switch, rounds):.4f}")


if __name__ == "__main__":
    main()
