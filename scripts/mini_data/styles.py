"""The styles: for each, what it draws from, what it leaves to chance, and how it paints.

What is left to chance is the point: a prompt says "neon sign", never which hue or on which wall. Those hidden factors
are drawn anew for every picture and must be plain to see, so that a set which shares them is seen to share them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import palettes
from .painting import (
    Floats,
    Layer,
    as_floats,
    blur,
    clip,
    colour,
    contrast,
    coordinates,
    edge_colours,
    floats,
    gradient_map,
    grow,
    luminance,
    mix,
    moved,
    outline,
    over,
    plain,
    ramp,
    shade,
    silhouette,
    slope,
    smooth,
    spotlit,
)

Factors = dict[str, str]
VECTOR = ("noto", "noto-v1", "fluent-flat")
RENDER = ("fluent-3d",)
LINE = ("noto-line",)
PIXELS = 16
"""Blocks along the side of a pixel-art picture."""


@dataclass(frozen=True)
class Style:
    """One style.

    Attributes:
        name: As captions name it.
        paraphrases: Other ways to ask for it; `{}` stands for the concept.
        foundries: Whose drawings it is made from.
        draw: Draws the hidden factors; sees the drawing, so that it is not lost on its ground.
        paint: Makes the picture from a drawing and its factors.
        weights: Weights of the line font it may use.
        tilt: Largest tilt in degrees.
    """

    name: str
    paraphrases: tuple[str, ...]
    foundries: tuple[str, ...]
    draw: Callable[[Layer, np.random.Generator], Factors]
    paint: Callable[[Layer, Factors], Floats]
    weights: tuple[int, ...] = ()
    tilt: float = 8.0


def pick(rng: np.random.Generator, choices: tuple[str, ...] | list[str]) -> str:
    """One of the choices."""
    return choices[int(rng.integers(len(choices)))]


def pick_ground(layer: Layer, rng: np.random.Generator, *, least: float = 0.8) -> str:
    """A ground on which the drawing's edge stands out, also from the ground's second tone; if none, the best."""
    edge = edge_colours(layer)
    grounds = list(palettes.GROUNDS.values())
    order = [grounds[int(i)] for i in rng.permutation(len(grounds))]
    visible = [min(contrast(edge, colour(code)), contrast(edge, second_tone(code))) for code in order]
    return next(
        (code for code, share in zip(order, visible, strict=True) if share >= least), order[int(np.argmax(visible))]
    )


def second_tone(code: str) -> Floats:
    """A ground's other tone: dark grounds have a lighter one, light grounds a darker one."""
    return shade(code, 0.24 if float(luminance(colour(code))) < 0.35 else -0.18)


# flat vector


def draw_flat(layer: Layer, rng: np.random.Generator) -> Factors:
    """Ground, and how it is laid."""
    ground = pick_ground(layer, rng)
    return {"ground": ground, "layout": pick(rng, ("plain", "disc", "split", "diagonal"))}


def paint_flat(layer: Layer, factors: Factors) -> Floats:
    """The drawing as it is, on a flat ground of one or two tones."""
    side = layer.alpha.shape[0]
    across, down = coordinates(side)
    picture = plain(factors["ground"], side)
    second = second_tone(factors["ground"])
    edge = 1.5 / side
    match factors["layout"]:
        case "disc":
            distance = np.sqrt((across - 0.5) ** 2 + (down - 0.5) ** 2)
            picture = over(picture, second, 1 - ramp(distance, 0.42 - edge, 0.42 + edge))
        case "split":
            picture = over(picture, second, ramp(down, 0.66 - edge, 0.66 + edge))
        case "diagonal":
            picture = over(picture, second, ramp(across + down, 1 - edge, 1 + edge))
        case _:
            pass
    return over(picture, layer.colour, layer.alpha)


# 3d render


def draw_render(layer: Layer, rng: np.random.Generator) -> Factors:
    """Ground, the light's colour, and where it comes from."""
    ground = pick_ground(layer, rng)
    return {"ground": ground, "light": pick(rng, list(palettes.LIGHTS)), "from": pick(rng, ("left", "right", "top"))}


def paint_render(layer: Layer, factors: Factors) -> Floats:
    """The render in a studio: a lit backdrop, tinted light, a soft shadow."""
    side = layer.alpha.shape[0]
    across, down = coordinates(side)
    at = {"left": (0.2, 0.2), "right": (0.8, 0.2), "top": (0.5, 0.35)}[factors["from"]]
    picture = spotlit(factors["ground"], side, strength=0.75, at=at)
    away = {"left": 0.035, "right": -0.035, "top": 0.0}[factors["from"]]
    shadow = blur(moved(layer.alpha, away, 0.04), 0.035) * 0.55
    picture = floats(picture * (1 - shadow[..., None]))
    light = colour(palettes.LIGHTS[factors["light"]])
    reach = 1 - 0.75 * np.sqrt((across - at[0]) ** 2 + (down - at[1]) ** 2)
    body = layer.colour * mix(np.ones(3, dtype=np.float32), light, 0.8) * (0.85 + 0.3 * reach[..., None])
    return clip(over(picture, clip(body), layer.alpha))


# bold ink


def draw_ink(layer: Layer, rng: np.random.Generator) -> Factors:
    """Paper, ink, and perhaps a second colour printed beneath the lines, out of register."""
    spot = pick(rng, palettes.SPOTS) if rng.random() < 0.6 else "none"
    return {"ground": pick(rng, palettes.PAPERS), "ink": pick(rng, palettes.INKS), "spot": spot}


def paint_ink(layer: Layer, factors: Factors) -> Floats:
    """Heavy lines printed on paper."""
    picture = plain(factors["ground"], layer.alpha.shape[0])
    if factors["spot"] != "none":
        fill = moved(silhouette(layer.alpha), 0.016, 0.02)
        spot = colour(factors["spot"])
        picture = over(picture, floats(picture * spot * 0.35 + spot * 0.65), fill)
    lines = ramp(blur(layer.alpha, 0.005), 0.2, 0.5)
    return over(picture, colour(factors["ink"]), lines)


# blueprint


def draw_blueprint(layer: Layer, rng: np.random.Generator) -> Factors:
    """Sheet, chalk, and the sheet's ruling."""
    return {
        "ground": pick(rng, palettes.BLUEPRINTS),
        "ink": pick(rng, palettes.CHALKS),
        "ruling": pick(rng, ("fine", "coarse", "dots", "axes")),
    }


def paint_blueprint(layer: Layer, factors: Factors) -> Floats:
    """Thin light lines on a ruled sheet of one deep colour, solid parts hatched."""
    side = layer.alpha.shape[0]
    across, down = coordinates(side)
    picture = spotlit(factors["ground"], side, strength=0.18, at=(0.5, 0.5))
    ink = colour(factors["ink"])

    def lines(period: float, width: float) -> Floats:
        near = [np.abs((c / period + 0.5) % 1 - 0.5) * period for c in (across, down)]
        edge = 0.8 / side
        return np.maximum(*(1 - ramp(n.astype(np.float32), width - edge, width + edge) for n in near))

    match factors["ruling"]:
        case "fine":
            picture = over(picture, ink, np.maximum(lines(1 / 16, 0.0022) * 0.2, lines(1 / 4, 0.0028) * 0.34))
        case "coarse":
            picture = over(picture, ink, lines(1 / 6, 0.004) * 0.3)
        case "dots":
            near = [np.abs(c * 14 % 1 - 0.5) / 14 for c in (across, down)]
            distance = np.sqrt(near[0] ** 2 + near[1] ** 2).astype(np.float32)
            picture = over(picture, ink, (1 - ramp(distance, 0.006, 0.011)) * 0.5)
        case _:
            middle = np.maximum(np.abs(across - 0.5) < 0.0035, np.abs(down - 0.5) < 0.0035)
            dashes = ((across + down) * 18 % 1 < 0.65) & middle
            frame = np.maximum(np.abs(across - 0.5), np.abs(down - 0.5))
            border = np.abs(frame - 0.465) < 0.0045
            picture = over(picture, ink, np.maximum(dashes * 0.4, border * 0.8).astype(np.float32))
    drawn = outline(layer.alpha)
    solid = clip(layer.alpha - drawn)
    hatch = ramp(np.abs(((across + down) * 26) % 1 - 0.5).astype(np.float32), 0.2, 0.32)
    picture = over(picture, colour(factors["ground"]), silhouette(layer.alpha) * 0.55)
    return over(over(picture, ink, solid * hatch * 0.75), ink, drawn)


# neon sign


def draw_neon(layer: Layer, rng: np.random.Generator) -> Factors:
    """The tubes' hue, perhaps a second one, and the wall."""
    hue = pick(rng, palettes.NEONS)
    second = pick(rng, [code for code in palettes.NEONS if code != hue]) if rng.random() < 0.5 else hue
    return {"ink": hue, "second": second, "ground": pick(rng, palettes.NIGHTS), "wall": pick(rng, ("plain", "brick"))}


def paint_neon(layer: Layer, factors: Factors) -> Floats:
    """Glowing tubes on a dark wall, which they light."""
    side = layer.alpha.shape[0]
    across, down = coordinates(side)
    tubes = outline(layer.alpha)
    hue = mix(colour(factors["ink"]), colour(factors["second"]), ramp(floats((across + down) / 2), 0.3, 0.7))
    wall = plain(factors["ground"], side)
    if factors["wall"] == "brick":
        row = np.floor(down * 11)
        joint = floats(np.minimum(down * 11 % 1, ((across * 5.5 + row * 0.5) % 1) * 2))
        wall = floats(wall * (1.25 - 0.75 * (1 - ramp(joint, 0.03, 0.14)))[..., None])
    near, halo, room = blur(tubes, 0.012), blur(tubes, 0.035), blur(tubes, 0.1)
    # light adds up on the wall: near the tubes their own hue, further off the wall's structure lit by it
    lit = wall * (1 + 9 * room[..., None] * hue) + hue * (0.6 * near + 0.7 * halo + 0.4 * room)[..., None]
    core = ramp(blur(tubes, 0.007), 0.6, 1.0)[..., None]
    glass = mix(hue, np.ones(3, dtype=np.float32), 0.12)
    picture = mix(clip(lit), glass, tubes)
    return clip(picture + core * 0.42)


# metal statue


def draw_metal(layer: Layer, rng: np.random.Generator) -> Factors:
    """The metal and the ground behind it."""
    return {"metal": pick(rng, list(palettes.METALS)), "ground": pick(rng, list(palettes.GROUNDS.values()))}


def paint_metal(layer: Layer, factors: Factors) -> Floats:
    """The render cast in metal: its relief lit from the upper left, its brightness mapped to the metal's colours."""
    side = layer.alpha.shape[0]
    across, down = coordinates(side)
    solid = layer.alpha > 0.5
    grey = luminance(layer.colour)
    low, high = np.percentile(grey[solid], (2, 98)) if solid.any() else (0.0, 1.0)
    tone = clip((grey - low) / max(float(high - low), 0.15))
    height = 2.2 * smooth(layer.alpha, 0.11) + 1.2 * smooth(layer.alpha, 0.05) + 0.9 * smooth(layer.alpha, 0.02)
    height = height + 0.9 * smooth(tone * layer.alpha, 0.011)
    height = floats(height * side / 14)
    # 1 towards the light, 0 flat, -1 away
    facing = floats(np.tanh(slope(height, axis=0) * 0.8 + slope(height, axis=1) * 0.6))
    # as polished metal does, it shows a bright sky, a dark horizon, and some light from below
    bright = (0.32, 0.16, 0.28, 0.5, 0.64, 0.84, 1, 0.92)
    reflected = floats(np.interp(facing, (-1, -0.6, -0.25, 0, 0.3, 0.6, 0.85, 1), bright))
    sheen = 0.09 * np.sin(2 * np.pi * (1.5 * (across + down) + 0.35 * tone))
    value = reflected + 0.55 * (smooth(tone, 0.004) - 0.5) + sheen
    body = gradient_map(clip(value), palettes.METALS[factors["metal"]])
    picture = spotlit(factors["ground"], side, strength=0.8, at=(0.5, 0.4))
    shadow = blur(moved(layer.alpha, 0.025, 0.035), 0.028) * 0.6
    return over(floats(picture * (1 - shadow[..., None])), body, layer.alpha)


# sticker


def draw_sticker(layer: Layer, rng: np.random.Generator) -> Factors:
    """What it is stuck on, and how wide its rim is."""
    return {
        "ground": pick(rng, list(palettes.GROUNDS.values())),
        "pattern": pick(rng, ("plain", "stripes", "dots", "checks")),
        "rim": pick(rng, ("narrow", "wide")),
    }


def paint_sticker(layer: Layer, factors: Factors) -> Floats:
    """The drawing with a white rim and a soft shadow, stuck on a coloured, perhaps patterned, sheet."""
    side = layer.alpha.shape[0]
    across, down = coordinates(side)
    second = second_tone(factors["ground"])
    edge = 8 / side
    match factors["pattern"]:
        case "stripes":
            mask = ramp(np.abs(((across + down) * 5) % 1 - 0.5), 0.25 - edge / 2, 0.25 + edge / 2)
        case "dots":
            row = np.floor(down * 8)
            centre = [((across * 8 + row % 2 * 0.5) % 1 - 0.5), (down * 8 % 1 - 0.5)]
            mask = 1 - ramp(np.sqrt(centre[0] ** 2 + centre[1] ** 2).astype(np.float32), 0.26 - edge, 0.26 + edge)
        case "checks":
            mask = ((np.floor(across * 6) + np.floor(down * 6)) % 2).astype(np.float32)
        case _:
            mask = np.zeros_like(layer.alpha)
    picture = over(plain(factors["ground"], side), second, mask.astype(np.float32))
    rim = grow(layer.alpha, 0.032 if factors["rim"] == "wide" else 0.02)
    shadow = blur(moved(rim, 0.014, 0.022), 0.018) * 0.55
    picture = floats(picture * (1 - shadow[..., None]))
    return over(over(picture, plain("#ffffff", side), rim), layer.colour, layer.alpha)


# pixel art


def draw_pixel(layer: Layer, rng: np.random.Generator) -> Factors:
    """Either natural colours on a ground, or everything in four tones of one palette."""
    if rng.random() < 0.5:
        return {"ground": pick_ground(layer, rng), "tones": "natural"}
    return {"ground": pick(rng, ("dark", "bright")), "tones": pick(rng, list(palettes.PIXEL_TONES))}


def paint_pixel(layer: Layer, factors: Factors) -> Floats:
    """Sixteen by sixteen blocks of few colours; every block is of one colour, its edges hard."""
    side = layer.alpha.shape[0]
    pixels = np.concatenate([layer.colour * layer.alpha[..., None], layer.alpha[..., None]], axis=-1)
    edges = [block * side // PIXELS for block in range(PIXELS)]
    sums = np.add.reduceat(np.add.reduceat(pixels, edges, axis=0), edges, axis=1)
    cover = floats(sums[..., 3] / (side / PIXELS) ** 2)
    body = floats(sums[..., :3] / np.maximum(sums[..., 3:], 1e-6))
    solid = np.asarray(cover > 0.38)
    if not np.any(solid):
        solid = np.asarray(cover >= np.max(cover))
    if factors["tones"] == "natural":
        grey = luminance(body)[..., None]
        vivid = clip(0.5 + ((grey + (body - grey) * 1.35) - 0.5) * 1.15)
        body = quantised(vivid, solid, colours=6)
        ground = colour(factors["ground"])
    else:
        tones = np.stack([colour(code) for code in palettes.PIXEL_TONES[factors["tones"]]])
        grey = luminance(body)
        # half by brightness, half by rank, so that all three tones are used also where the drawing has few
        low, high = np.percentile(grey[solid], (5, 95))
        level = clip((grey - low) / max(float(high - low), 0.2))
        rank = np.searchsorted(np.sort(grey[solid]), grey, side="right") / np.count_nonzero(solid)
        level = clip(0.5 * level + 0.5 * rank, high=0.999)
        # the ground's tone is not used for the drawing, which could else dissolve in it
        first = 1 if factors["ground"] == "dark" else 0
        body = tones[first + np.asarray(level * 3, dtype=np.intp)]
        ground = tones[0] if factors["ground"] == "dark" else tones[3]
    blocks = np.where(solid[..., None], body, ground)
    at = [row * PIXELS // side for row in range(side)]
    return floats(blocks[at][:, at])


def quantised(picture: Floats, solid: NDArray[np.bool_], *, colours: int) -> Floats:
    """Reduce the solid part of a small picture to a few colours."""
    row = Image.fromarray(np.asarray(picture[solid][None] * 255, dtype=np.uint8))
    reduced = row.quantize(colours, method=Image.Quantize.MAXCOVERAGE).convert("RGB")
    result = np.array(picture)
    result[solid] = as_floats(reduced)[0]
    return result


STYLES = (
    Style(
        "flat vector",
        ("a flat vector drawing of {}", "{} as flat art", "a flat vector of {}", "{} in flat vector"),
        VECTOR,
        draw_flat,
        paint_flat,
    ),
    Style(
        "3d render",
        ("a 3d render of {}", "{} rendered in 3d", "{} as a 3d render", "{} in 3d"),
        RENDER,
        draw_render,
        paint_render,
    ),
    Style(
        "bold ink",
        ("{} drawn in bold ink", "an ink drawing of {}", "{} in bold ink", "a bold ink drawing of {}"),
        LINE,
        draw_ink,
        paint_ink,
        (500, 600, 700),
    ),
    Style(
        "blueprint",
        ("a blueprint of {}", "{} as a blueprint", "a blueprint drawing of {}", "{} in blueprint"),
        LINE,
        draw_blueprint,
        paint_blueprint,
        (400, 500),
    ),
    Style(
        "neon sign",
        ("{} as a neon sign", "{}, glowing neon", "a neon sign of {}", "a glowing neon sign of {}"),
        LINE,
        draw_neon,
        paint_neon,
        (500, 600, 700),
    ),
    Style(
        "metal statue",
        ("a metal statue of {}", "{} cast in metal", "{} as a metal statue", "a statue of {}"),
        RENDER,
        draw_metal,
        paint_metal,
    ),
    Style(
        "sticker",
        ("a sticker of {}", "{} as a sticker", "a sticker drawing of {}", "{}, a sticker"),
        VECTOR,
        draw_sticker,
        paint_sticker,
    ),
    Style(
        "pixel art",
        ("{} in pixel art", "{}, pixelated", "pixel art of {}", "{} as pixel art"),
        VECTOR,
        draw_pixel,
        paint_pixel,
        tilt=0.0,
    ),
)
