"""Train the embedded model: the data, the autoencoder, the latents of all drawings, then U-Net and text encoders.

    python -m scripts.train_mini --output RUN

    python -m scripts.train_mini --output RUN --initial WEIGHTS --learning-rate 3e-4 --steps 10000

goes on from weights that were trained before, such as the package's, with a schedule of its own. Put the autoencoder
of those weights into RUN/export first: it is then not trained again, and latents keep their meaning.

Every stage goes on from its last checkpoint in the output folder, so the same command resumes an interrupted run. At
the end RUN/export holds the weights as the package carries them.

Those of the package took two cores ten minutes for the drawings, 23 for the autoencoder, and four hours for U-Net and
text encoders, and then GPUs eleven minutes. On other machines sums are rounded differently, so weights differ in their
digits.
"""

import argparse
import os
from pathlib import Path

import torch

from scripts.mini_data.prepare import prepare
from scripts.mini_training.autoencoder_stage import AutoencoderSettings, train_autoencoder
from scripts.mini_training.dataset import Drawings
from scripts.mini_training.export import export_autoencoder, export_unet, load_autoencoder
from scripts.mini_training.latents import encode_drawings
from scripts.mini_training.parallel import Workers, count_workers
from scripts.mini_training.replay import Replay
from scripts.mini_training.unet_stage import UNetSettings, train_unet

STAGES = ("data", "autoencoder", "latents", "unet", "export")


def positive(text: str) -> int:
    """A number of steps or threads."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def even(text: str) -> int:
    """The size of a batch, half of which is the number of sheets in it."""
    if (number := int(text)) < 2 or number % 2:
        raise argparse.ArgumentTypeError(f"expected an even number of at least 2, got {number}")
    return number


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints, logs, sheets and weights")
    parser.add_argument("--data", type=Path, help="the drawings, prepared if there are none (default: OUTPUT/data)")
    parser.add_argument("--initial", type=Path, help="folder of weights that U-Net and text encoders start from")
    parser.add_argument("--learning-rate", type=float, default=UNetSettings.learning_rate, help="at its highest")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all")
    parser.add_argument("--autoencoder-steps", type=positive, default=AutoencoderSettings.steps)
    parser.add_argument("--steps", type=positive, default=UNetSettings.steps, help="of U-Net and text encoders")
    parser.add_argument("--minutes", type=float, help="train U-Net and text encoders for so long instead")
    parser.add_argument("--batch-size", type=even, default=UNetSettings.batch_size)
    parser.add_argument("--threads", type=positive, default=os.cpu_count())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="fuse operations first, on a GPU")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    threads = options.threads if options.device == "cpu" else 1
    workers = Workers(count_workers(threads, options.batch_size))
    options.output.mkdir(parents=True, exist_ok=True)
    data = options.data or options.output / "data"
    stages = STAGES if options.stage == "all" else (options.stage,)
    weights = options.output / "export"

    if not (data / "index.json").exists():
        if "data" not in stages:
            raise FileNotFoundError(f"no drawings in {data}: expected --stage data or all to prepare them")
        prepare(output=data, sources=data / "sources", jobs=options.threads)
    drawings = Drawings.load(data)
    if "autoencoder" in stages and not (weights / "autoencoder.safetensors").exists():
        settings = AutoencoderSettings(steps=options.autoencoder_steps)
        autoencoder = train_autoencoder(drawings, options.output, settings, options.device, workers, seed=options.seed)
        export_autoencoder(autoencoder, weights)
    if "latents" in stages and not (options.output / "latents.safetensors").exists():
        autoencoder = load_autoencoder(weights, options.device)
        encode_drawings(autoencoder, drawings, options.output / "latents.safetensors")
    if "unet" in stages:
        settings = UNetSettings(
            steps=options.steps,
            minutes=options.minutes,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
        )
        gradients = Replay(options.compile) if torch.device(options.device).type == "cuda" else workers
        train_unet(
            drawings, options.output, settings, options.device, gradients, seed=options.seed, initial=options.initial
        )
    if "export" in stages:
        export_unet(options.output, drawings)


if __name__ == "__main__":
    main()
