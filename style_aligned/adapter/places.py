"""The places in a model where sharing happens, with the names that Refiners and diffusers users know them by."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion.stable_diffusion_1 import unet as sd1
from refiners.foundationals.latent_diffusion.stable_diffusion_xl import unet as sdxl
from refiners.foundationals.latent_diffusion.unet import ResidualBlock

DOWN, UP, MIDDLE = (
    (sd1.DownBlocks, sdxl.DownBlocks), (sd1.UpBlocks, sdxl.UpBlocks), (sd1.MiddleBlock, sdxl.MiddleBlock),
)  # fmt: skip
SDXL_UP, STYLE_FROM = 36, 24
"""The self-attentions in the up blocks of SDXL, and the first of them in which StyleKeeper shares."""

TLayer = TypeVar("TLayer", bound=fl.Module)


@dataclass(frozen=True, eq=False)
class Place:
    """A self-attention, or a group normalization.

    Attributes:
        name: Its name, such as `up.0.1.3`: the fourth self-attention of diffusers' `up_blocks.0.attentions.1`. A group
            normalization has the name of its block, such as `up.0.1`, and that of the output `out`.
        layer: The layer.
        parent: The chain that holds it.
        downscale: How many latents a side go into one of its tokens.
    """

    name: str
    layer: Any
    parent: fl.Chain
    downscale: int = 1


def walk(chain: fl.Chain, layer_type: type[TLayer] | tuple[type[TLayer], ...]) -> Iterator[tuple[TLayer, fl.Chain]]:
    """Walk the layers of the given types, with their parents, that are in the data flow of the chain.

    What a `Passthrough` holds is left out, since its output is dropped: a ControlNet has attentions of its own.
    """

    def is_found(layer: fl.Module, _: fl.Chain) -> bool:
        if isinstance(layer, fl.Passthrough):
            raise StopIteration  # prunes
        return isinstance(layer, layer_type)

    if isinstance(chain, layer_type):
        yield chain, chain.parent or chain
    else:
        yield from chain.walk(is_found)  # pyright: ignore[reportReturnType]


def find_self_attentions(target: fl.Chain) -> list[Place]:
    """Find the self-attentions of a model, in the order in which diffusers counts them: down, up, middle."""
    places: list[Place] = []
    counts: dict[str, int] = {}
    blocks = _find_blocks(target)
    for layer, parent in walk(target, fl.SelfAttention):
        block, downscale = _block_of(layer, blocks)
        index = counts[block] = counts.get(block, -1) + 1
        places.append(Place(f"{block}.{index}", layer, parent, downscale))
    return sorted(places, key=lambda place: place.name.startswith("middle."))  # stable


def find_group_norms(target: fl.Chain) -> list[Place]:
    """Find the group normalizations of a model."""
    blocks = _find_blocks(target)
    places: list[Place] = []
    for layer, parent in list(walk(target, fl.GroupNorm)):
        block, downscale = _block_of(parent, blocks)
        places.append(Place("out" if block == "layer" else block, layer, parent, downscale))
    return places


def _find_blocks(target: fl.Chain) -> dict[int, tuple[str, int]]:
    """Find the name of each block of the U-Net that a chain is or is part of, and its downscale, by identity."""
    top = (target.get_parents() or [target])[-1]
    chains: list[fl.Chain] = [chain for chain, _ in walk(top, (*DOWN, *UP, *MIDDLE))]
    levels = sum(1 for chain in chains if isinstance(chain, DOWN) for _ in chain.walk(fl.Downsample))
    blocks: dict[int, tuple[str, int]] = {}
    for kinds, section in ((DOWN, "down"), (UP, "up"), (MIDDLE, "middle")):
        for chain in (chain for chain in chains if isinstance(chain, kinds)):
            if section == "middle":
                blocks[id(chain)] = "middle.0", 2**levels
                continue
            level = index = 0
            for block in chain:
                assert isinstance(block, fl.Chain)
                blocks[id(block)] = f"{section}.{level}.{index}", 2 ** (level if section == "down" else levels - level)
                if any(isinstance(layer, fl.Downsample | fl.Upsample) for layer in block):
                    level, index = level + 1, 0
                elif any(isinstance(layer, ResidualBlock) for layer in block):  # not the first convolution
                    index += 1
    return blocks


def _block_of(layer: fl.Chain, blocks: Mapping[int, tuple[str, int]]) -> tuple[str, int]:
    return next((blocks[id(chain)] for chain in (layer, *layer.get_parents()) if id(chain) in blocks), ("layer", 1))


def find_presets(names: Sequence[str]) -> dict[str, list[str]]:
    """Return what each preset selects. Group normalizations go with blocks, not with single self-attentions.

    On SDXL, `style` is where StyleKeeper ([[arXiv:2510.06827]](https://arxiv.org/abs/2510.06827)) shares: from the 24th
    of the 36 self-attentions of the up blocks on. `layout` is the block that InstantStyle
    ([[arXiv:2404.02733]](https://arxiv.org/abs/2404.02733)) found to hold the layout, `down.2.1`. On other models they
    are all of the up blocks, and all of the down blocks: what was measured on the embedded model (docs/control.md).

    Args:
        names: The names of all self-attentions.
    """
    up = [name for name in names if covers("up", name)]
    if len(up) == SDXL_UP:
        return {"style": up[STYLE_FROM:], "layout": ["down.2.1"]}
    return {"style": ["up"], "layout": ["down"]}


def covers(selection: str, name: str) -> bool:
    """Return whether a name is the selected one, or that of a part of it."""
    return name == selection or name.startswith(f"{selection}.")


def resolve(layers: Mapping[str, Any] | Sequence[str] | None, names: Sequence[str]) -> dict[str, float] | None:
    """Return the strengths of the selected places, with presets written out.

    Args:
        layers: What was selected, with a strength for each if it is a mapping. None selects everything.
        names: The names of all self-attentions.

    Raises:
        ValueError: If there is no layer of a name.
    """
    if layers is None:
        return None
    strengths = {**layers} if isinstance(layers, Mapping) else dict.fromkeys(layers, 1.0)
    presets = find_presets(names)
    known = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, 5)} | {"out"}
    resolved: dict[str, float] = {}
    for selection, strength in strengths.items():
        if selection in presets and known.issuperset(presets[selection]):
            resolved.update(dict.fromkeys(presets[selection], float(strength)))
        elif selection in known:
            resolved[selection] = float(strength)
        else:
            close = get_close_matches(selection, [*known, *presets], n=3) or sorted(known, key=len)[:5]
            raise ValueError(f"expected layers of this model, such as {', '.join(close)}, got {selection!r}")
    return resolved


def strength_of(strengths: Mapping[str, float] | None, name: str) -> float:
    """Return the strength of a place: that of the longest selection that covers it, or 0.

    Args:
        strengths: The strengths of the selections. None means 1 everywhere.
        name: The name of the place.
    """
    if strengths is None:
        return 1.0
    return max(((len(s), strength) for s, strength in strengths.items() if covers(s, name)), default=(0, 0.0))[1]
