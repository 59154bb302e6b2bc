"""What Google's code makes of a picture, on a narrow SDXL: `google_inversion.safetensors`, and how it was made.

    git clone https://github.com/google/style-aligned
    python -m tests.golden.google_inversion style-aligned

Google's `inversion.py` and `sa_handler.py` run as they are, of commit 2faf0af, with the settings of the notebook
`style_aligned_transfer_sdxl.ipynb`. They are written for float16 and 1024x1024: here `Tensor.half` and the module's
`torch.float16` mean float32, and the time ids are those of the real size. The file holds the trajectory, and the
latents of the targets after the last step.
"""

import argparse
import importlib
import math
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.models.checkpoints.pipelines import make_pipeline

FILE = Path(__file__).parent / "google_inversion.safetensors"
PROMPT = "a man laying in a bed, medieval painting."
TARGETS = ["a man working on a laptop, medieval painting.", "a cat"]
SIZE = (64, 96)
STEPS, SCALE, OFFSET, GUIDANCE = 5, 2, 1, 10.0
SHIFT = math.log(2)


def make_picture() -> Image.Image:
    """A picture of smooth colours."""
    values = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC)


def make_noise() -> Tensor:
    """The noise of the targets. Uniform numbers are the same bits on every processor, normal ones are not."""
    shape = (len(TARGETS), 4, SIZE[0] // 8, SIZE[1] // 8)
    return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 0.5) * 12**0.5


class InFloat32:
    """PyTorch, in which float16 means float32."""

    float16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def google_code(folder: Path, pipeline: Any) -> Generator[tuple[Any, Any], None, None]:
    """Import Google's modules, and have them compute in float32 at the size of the picture."""
    sys.path.insert(0, str(folder))
    inversion, sa_handler = (importlib.import_module(name) for name in ("inversion", "sa_handler"))
    make_time_ids = pipeline._get_add_time_ids

    def of_real_size(original: Any, corner: Any, target: Any, *others: Any, **named: Any) -> Tensor:
        return make_time_ids(SIZE, corner, SIZE, *others, **named)

    with (
        mock.patch.object(inversion, "torch", InFloat32()),
        mock.patch.object(Tensor, "half", Tensor.float),
        mock.patch.object(pipeline, "_get_add_time_ids", of_real_size),
    ):
        yield inversion, sa_handler


@torch.no_grad()
def compute(folder: Path) -> dict[str, Tensor]:
    """Have Google's code invert the picture, and draw targets with it."""
    with tempfile.TemporaryDirectory() as temporary:
        pipeline = make_pipeline("deep xl", Path(temporary))
    with google_code(folder, pipeline) as (inversion, sa_handler):
        picture = np.array(make_picture())
        trajectory = inversion.ddim_inversion(pipeline, picture, PROMPT, STEPS, SCALE)
        first, callback = inversion.make_inversion_callback(trajectory, offset=OFFSET)
        sa_handler.Handler(pipeline).register(sa_handler.StyleAlignedArgs(shared_score_shift=SHIFT))
        latents = torch.cat([first[None], make_noise()])
        images = pipeline(
            [PROMPT, *TARGETS], latents=latents, callback_on_step_end=callback, num_inference_steps=STEPS,
            guidance_scale=GUIDANCE, height=SIZE[0], width=SIZE[1], output_type="latent",
        ).images  # fmt: skip
    return {"trajectory": trajectory, "targets": images[1:]}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.google_inversion", description=__doc__)
    parser.add_argument("folder", type=Path, help="the checkout of Google's repository")
    save_file({name: tensor.contiguous() for name, tensor in compute(parser.parse_args().folder).items()}, FILE)


if __name__ == "__main__":
    main()
