"""The paper's two questions, on the embedded model: do images of a set share a style, and does each show its prompt?

Sets are generated from the same noise with every variant of the method, and looked at by the
[`Classifier`][style_aligned.evaluation.classifier.Classifier] and by
[`set_palette_distance`][style_aligned.evaluation.palette.set_palette_distance].
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from style_aligned.adapter.adapter import StyleAlignedAdapter
from style_aligned.evaluation.classifier import Classifier, load_classifier
from style_aligned.evaluation.palette import set_palette_distance
from style_aligned.evaluation.statistics import Interval, bootstrap_mean, bootstrap_ratio
from style_aligned.models.denoising import take_step
from style_aligned.models.family import MINI, family_of
from style_aligned.models.finite import check_latents, decode_image
from style_aligned.models.mini.names import name_thing
from style_aligned.models.model import Model
from style_aligned.models.solvers import Trajectory, make_solver, sample_noise
from style_aligned.models.state import exclusive_use
from style_aligned.models.text import embed


@dataclass(frozen=True)
class Variant:
    """A way to generate sets.

    Attributes:
        name: What it is called in the results.
        options: The options of the [`StyleAlignedAdapter`][style_aligned.adapter.StyleAlignedAdapter]. None means that
            there is no adapter.
    """

    name: str
    options: dict[str, Any] | None


@dataclass(frozen=True)
class Setting:
    """What the prompts of a set say.

    Attributes:
        name: What it is called in the results.
        description: What it asks.
        targets_have_style: Whether the prompts of the targets name the style, as the reference's does.
    """

    name: str
    description: str
    targets_have_style: bool


UNALIGNED = Variant("unaligned", None)
VARIANTS = (
    UNALIGNED,
    Variant("aligned", {}),
    Variant("shared group normalization", {"share_group_norm": True}),
    Variant("without AdaIN", {"adain_queries": False, "adain_keys": False}),
    Variant("full attention sharing", {"full_attention_share": True}),
)
SETTINGS = (
    Setting("same style", "all prompts of a set name one style", targets_have_style=True),
    Setting("style in the reference only", "the reference's prompt names a style, the targets' none", False),
)


@dataclass(frozen=True)
class SetOfPrompts:
    """What is asked for in one set: some concepts, in one style. The first is the reference.

    Attributes:
        style: The style.
        concepts: The concepts.
        seeds: The seed of each image's noise.
    """

    style: str
    concepts: tuple[str, ...]
    seeds: tuple[int, ...]

    def prompts(self, setting: Setting) -> list[str]:
        """Put it in words, such as "a fox, neon sign" for the reference."""
        return [
            f"{name_thing(concept)}, {self.style}" if index == 0 or setting.targets_have_style else name_thing(concept)
            for index, concept in enumerate(self.concepts)
        ]


@dataclass(frozen=True)
class Row:
    """The results of one variant in one setting, each with its 95% interval over sets.

    Attributes:
        setting: The name of the setting.
        variant: The name of the variant.
        style: The fraction of targets that the classifier finds in the style that the reference's prompt names.
        concept: The fraction of targets whose concept is the classifier's first guess.
        leakage: The fraction of targets whose first guess is the concept of the reference.
        leakage_probability: The mean probability of that concept.
        palette_distance: The mean over sets of the mean palette distance between a set's images, the reference
            included, in CIELAB units.
        palette_ratio: The same as a fraction of the unaligned sets'. None if those were not generated.
        seconds: How long it took to generate the images.
    """

    setting: str
    variant: str
    style: Interval
    concept: Interval
    leakage: Interval
    leakage_probability: Interval
    palette_distance: Interval
    palette_ratio: Interval | None
    seconds: float


@dataclass(frozen=True)
class Results:
    """What came out of an evaluation, and what went in.

    Attributes:
        rows: A row for each setting and variant.
        sets: The number of sets.
        set_size: The number of images in each, the reference included.
        seed: The seed from which prompts and noise follow.
        steps: The number of steps.
        guidance: The strength of the classifier-free guidance.
    """

    rows: tuple[Row, ...]
    sets: int
    set_size: int
    seed: int
    steps: int
    guidance: float

    def row(self, setting: str, variant: str) -> Row:
        """Give the row of a setting and a variant, by their names."""
        for row in self.rows:
            if (row.setting, row.variant) == (setting, variant):
                return row
        raise KeyError(f"no row for the setting {setting!r} and the variant {variant!r}")

    def to_dict(self) -> dict[str, Any]:
        """Give all of it as plain numbers and texts, such as JSON takes."""
        return asdict(self)


def draw_prompts(
    concepts: Sequence[str], styles: Sequence[str], *, sets: int, set_size: int, seed: int
) -> list[SetOfPrompts]:
    """Draw what is asked for: the styles in turn, and concepts at random, no concept twice in a set.

    Args:
        concepts: The concepts to choose from.
        styles: The styles to choose from.
        sets: The number of sets.
        set_size: The number of images in each.
        seed: Decides everything.

    Raises:
        ValueError: If there are no sets, fewer than two images in each, or more of them than concepts.
    """
    if sets < 1:
        raise ValueError(f"expected sets to be at least 1, got {sets}")
    if not 2 <= set_size <= len(concepts):
        raise ValueError(f"expected set_size between 2 and the number of concepts, {len(concepts)}, got {set_size}")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(styles))
    return [
        SetOfPrompts(
            style=styles[int(order[number % len(styles)])],
            concepts=tuple(concepts[int(i)] for i in rng.choice(len(concepts), size=set_size, replace=False)),
            seeds=tuple(int(noise_seed) for noise_seed in rng.integers(2**31, size=set_size)),
        )
        for number in range(sets)
    ]


def draw_images(
    model: Model,
    sets: Sequence[SetOfPrompts],
    setting: Setting,
    variant: Variant,
    *,
    steps: int,
    guidance: float,
    autocast: bool = False,
    on_step: Callable[[], None] | None = None,
) -> list[list[Image.Image]]:
    """Generate the images of some sets of one size, all in one batch.

    References and targets go through the U-Net together, since with full attention sharing they depend on each other.
    For the other variants that gives what [`generate`][style_aligned.sampling.generate] does.

    Args:
        model: The model.
        sets: What to generate.
        setting: What the prompts say.
        variant: How to generate.
        steps: The number of steps.
        guidance: The strength of the classifier-free guidance.
        autocast: Whether to compute in bfloat16 where PyTorch's autocast does.
        on_step: Called after each step.

    Returns:
        The images of each set, the reference first.

    Raises:
        ValueError: If latents overflow.
    """
    set_size = len(sets[0].concepts)
    names = [prompt for prompts in sets for prompt in prompts.prompts(setting)]
    seeds = [seed for prompts in sets for seed in prompts.seeds]
    size, solver, options = family_of(model).default_size, make_solver(model, steps), variant.options
    low_precision = partial(torch.autocast, device_type=model.device.type, dtype=torch.bfloat16, enabled=autocast)
    with exclusive_use(model):
        texts = [embed(model, name) for name in names]
        images = [Trajectory(model, solver, seed, sample_noise(model, seed, size)) for seed in seeds]
        align = nullcontext() if options is None else StyleAlignedAdapter(model.unet, **options, set_size=set_size)
        with align as adapter:
            for step in solver.inference_steps:
                if adapter is not None:
                    adapter.set_step(step, steps)
                with low_precision():
                    images = take_step(model, images, step, texts=texts, condition_scale=guidance)
                if on_step is not None:
                    on_step()
        for image, name in zip(images, names, strict=True):
            check_latents(image.latents, name, model.unet)
        with low_precision():
            pictures = [
                decode_image(model.lda, image.latents, f"the image of {name!r}")
                for image, name in zip(images, names, strict=True)
            ]
    return [pictures[start : start + set_size] for start in range(0, len(pictures), set_size)]


def evaluate(
    model: Model,
    *,
    sets: int = 50,
    set_size: int = 5,
    seed: int = 0,
    steps: int = 15,
    guidance: float = MINI.condition_scale,
    variants: Sequence[Variant] = VARIANTS,
    settings: Sequence[Setting] = SETTINGS,
    classifier: Classifier | None = None,
    batch_size: int = 20,
    autocast: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    on_set: Callable[[Setting, Variant, SetOfPrompts, list[Image.Image]], None] | None = None,
) -> Results:
    """Evaluate style alignment on a model that draws what the classifier knows, such as the embedded one.

    See [[arXiv:2312.02133] Style Aligned Image Generation via Shared Attention](https://arxiv.org/abs/2312.02133),
    whose evaluation asks the same of DINO and CLIP.

    Args:
        model: The model.
        sets: The number of sets in each setting.
        set_size: The number of images in a set, the reference included.
        seed: The seed from which prompts and noise follow. They are the same for all variants.
        steps: The number of steps.
        guidance: The strength of the classifier-free guidance.
        variants: The ways to generate.
        settings: The kinds of prompts.
        classifier: Who looks at the images. None means the classifier of the embedded model's styles and concepts.
        batch_size: The number of images to generate at once, as far as whole sets can make it up.
        autocast: Whether to compute in bfloat16 where PyTorch's autocast does, which takes little more than half of the
            time on processors that have it.
        on_progress: Called as it goes on, with the number of steps that are done and of all there are.
        on_set: Called with the images of each set.

    Returns:
        The results, in the order of settings and variants.

    Raises:
        ValueError: If a number is out of its range, or if there are no variants or settings.
    """
    if not 1 <= steps <= 1000:
        raise ValueError(f"expected steps between 1 and 1000, got {steps}")
    if not math.isfinite(guidance):
        raise ValueError(f"expected guidance to be a finite number, got {guidance}")
    if batch_size < 1:
        raise ValueError(f"expected batch_size to be at least 1, got {batch_size}")
    if not variants or not settings:
        raise ValueError("expected at least one variant and one setting, got none")
    classifier = load_classifier(device=model.device) if classifier is None else classifier
    prompts = draw_prompts(classifier.concepts, classifier.styles, sets=sets, set_size=set_size, seed=seed)
    sets_at_once = max(1, batch_size // set_size)
    batches = [prompts[start : start + sets_at_once] for start in range(0, sets, sets_at_once)]

    total, done = len(settings) * len(variants) * len(batches) * steps, 0

    def on_step() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    rows: list[Row] = []
    for setting in settings:
        baseline: list[float] | None = None
        # the unaligned sets first: the others are compared with them
        for variant in sorted(variants, key=lambda variant: variant.options is not None):
            scores: list[_Scores] = []
            seconds = 0.0
            for batch in batches:
                start = time.perf_counter()
                images = draw_images(
                    model,
                    batch,
                    setting,
                    variant,
                    steps=steps,
                    guidance=guidance,
                    autocast=autocast,
                    on_step=on_step,
                )
                seconds += time.perf_counter() - start
                for one, its_images in zip(batch, images, strict=True):
                    scores.append(_score(classifier, one, its_images))
                    if on_set is not None:
                        on_set(setting, variant, one, its_images)
            columns = {name: [getattr(score, name) for score in scores] for name in _Scores.__annotations__}
            distances = columns["palette_distance"]
            if variant.options is None:
                baseline = distances
            rows.append(
                Row(
                    setting=setting.name,
                    variant=variant.name,
                    **{name: bootstrap_mean(column) for name, column in columns.items()},
                    palette_ratio=None if baseline is None else bootstrap_ratio(distances, baseline),
                    seconds=seconds,
                )
            )
    return Results(rows=tuple(rows), sets=sets, set_size=set_size, seed=seed, steps=steps, guidance=guidance)


@dataclass(frozen=True)
class _Scores:
    """What the classifier and the palettes say of one set, by the names of `Row`."""

    style: float
    concept: float
    leakage: float
    leakage_probability: float
    palette_distance: float


def _score(classifier: Classifier, prompts: SetOfPrompts, images: list[Image.Image]) -> _Scores:
    """Look at the images of one set."""
    found = classifier.classify(images[1:])
    reference, *concepts = prompts.concepts
    return _Scores(
        style=float(np.mean([name == prompts.style for name in found.style_names])),
        concept=float(np.mean([a == b for a, b in zip(found.concept_names, concepts, strict=True)])),
        leakage=float(np.mean([name == reference for name in found.concept_names])),
        leakage_probability=float(found.concepts[:, classifier.concepts.index(reference)].mean()),
        palette_distance=set_palette_distance(images),
    )
