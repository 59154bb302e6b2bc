"""Which of the files of a diffusers repository are needed: one set of weights for each part, and the settings."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from style_aligned.models.checkpoints.errors import CheckpointError

PARTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
SETTINGS = ("model_index.json", "scheduler/scheduler_config.json", "vae/config.json")


class _Shard(NamedTuple):
    number: int
    total: int
    name: str


def select_weights(names: Iterable[str], part: str, *, prefer_half: bool, where: object) -> list[str]:
    """Select the files with the weights of a part among all of its files: whole or in shards, of any variant.

    Args:
        names: The names of the files in the folder of the part.
        part: The name of the part: `"unet"`, `"vae"`, …
        prefer_half: Whether to prefer the fp16 variant; otherwise it is taken only if there is no other.
        where: The folder of the part, for messages.

    Returns:
        The names of the files to read.

    Raises:
        CheckpointError: If there is none, only pickles, or a shard is missing.
    """
    pattern = re.compile(
        rf"{PARTS[part]}(\.(?P<variant>\w+))?(-(?P<number>\d{{5}})-of-(?P<total>\d{{5}}))?(\.(?P<late>\w+))?\.safetensors"
    )
    names = list(names)
    whole: dict[str, str] = {}
    shards: dict[str, list[_Shard]] = {}
    for name in names:
        if match := pattern.fullmatch(name):
            variant = match["variant"] or match["late"] or ""
            if match["number"]:
                shards.setdefault(variant, []).append(_Shard(int(match["number"]), int(match["total"]), name))
            else:
                whole[variant] = name
    preferred = ("fp16", "bf16", "") if prefer_half else ("", "fp16", "bf16")
    for variant in (*preferred, *sorted({*whole, *shards})):
        if variant in whole:
            return [whole[variant]]
        if variant in shards:
            return _complete(sorted(shards[variant]), where)
    if any(name.endswith((".bin", ".ckpt", ".pt")) for name in names):
        raise CheckpointError(
            f"{where}: the weights are there as pickles alone, which can run any program when they are opened, so they "
            f"are never opened here; expected {PARTS[part]}.safetensors"
        )
    raise CheckpointError(
        f"{where}: no weights; expected {PARTS[part]}.safetensors, a variant such as {PARTS[part]}.fp16.safetensors, or"
        " shards"
    )


def _complete(shards: list[_Shard], where: object) -> list[str]:
    total = shards[0].total
    missing = sorted(set(range(1, total + 1)) - {shard.number for shard in shards})
    if missing:
        name = re.sub(r"-\d{5}-of", f"-{missing[0]:05}-of", shards[0].name)
        raise CheckpointError(f"{where}: the file {name} is missing ({len(shards)} of {total} are there)")
    return [shard.name for shard in shards if shard.total == total]
