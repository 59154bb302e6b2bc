"""How consistent sets of images are, and how well they show their prompts, in the measures that papers use."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image

from style_aligned.evaluation.encoders import CLIP, CSD, DINO, ImageEncoder, load_clip, load_csd, load_dino
from style_aligned.evaluation.folders import FolderSet, find_sets
from style_aligned.evaluation.palette import palette, palette_distances
from style_aligned.evaluation.plot import Column, Panel, draw_panels
from style_aligned.evaluation.statistics import Interval, bootstrap_mean, bootstrap_pairs
from style_aligned.files import open_image

MAX_IMAGES = 1000  # of a set
MAX_ROWS = 40  # of a plot
COLORS = {"aligned": "#0a7d5a", "unaligned": "#c2571a"}


@dataclass(frozen=True)
class Metric:
    """A measure of a set of images.

    Attributes:
        name: What it is called.
        title: The heading of its column.
        description: What it says, in a few words.
        form: The format of its values.
        model: The name of the model that it takes, if it takes one.
        load: Loads the model.
    """

    name: str
    title: str
    description: str
    form: str
    model: str | None = None
    load: Callable[..., ImageEncoder] | None = None


METRICS = {
    metric.name: metric
    for metric in (
        Metric("clip", "CLIP text", "cosine of each image and the text of what it shows", ".3f", CLIP, load_clip),
        Metric("dino", "DINO", "mean cosine of all pairs of a set's images", ".3f", DINO, load_dino),
        Metric("csd", "CSD style", "the same, for style alone", ".3f", CSD, load_csd),
        Metric("palette", "palette distance", "mean distance of all pairs in CIELAB: less is alike", ".1f"),
    )
}


@dataclass(frozen=True)
class Measures:
    """What was measured of one set, or of many.

    Attributes:
        name: The name of the set, or of the sets.
        group: The name of the sets that it belongs to.
        sets: The number of sets.
        images: The number of images.
        values: For each metric the mean and its 95% interval: of one set over its images, of several over sets. None
            where it cannot be told, as for pairs of a single image.
    """

    name: str
    group: str
    sets: int
    images: int
    values: dict[str, Interval | None]


@dataclass(frozen=True)
class Evaluation:
    """The measures of some folders.

    Attributes:
        sets: The measures of each set.
        groups: The measures over all sets: of those that are aligned and those that are not, and for each folder.
        models: The model of each metric that takes one.
    """

    sets: tuple[Measures, ...]
    groups: tuple[Measures, ...]
    models: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain numbers and texts, such as JSON takes."""
        return asdict(self)

    def to_plot(self, scale: int = 2) -> Image.Image:
        """Draw the measures over all sets, and those of each set if there are not too many.

        Args:
            scale: The number of pixels to a unit of length. The plot is 1000 units wide.
        """
        over_all = _panel("Over all sets", "mean and 95% interval over sets", self.groups)
        each = _panel("Each set", "mean and 95% interval over images", self.sets)
        return draw_panels([over_all, each] if 1 < len(self.sets) <= MAX_ROWS else [over_all], scale)


def evaluate_folders(
    folders: Sequence[Path],
    *,
    metrics: Sequence[str] = tuple(METRICS),
    models: Mapping[str, str] | None = None,
    device: str = "cpu",
    batch_size: int = 16,
    on_image: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure the sets of images in folders.

    Of a set of more than 1000 images, 1000 evenly spaced ones are taken.

    Args:
        folders: The folders. What they hold is described at
            [`find_sets`][style_aligned.evaluation.folders.find_sets].
        metrics: Which measures to take: of "clip", "dino", "csd" and "palette".
        models: The names or paths of other models for them.
        device: Where the models compute.
        batch_size: The number of images that go through a model at a time.
        on_image: Called as it goes on, with the number of images that are done and of all there are.

    Returns:
        The measures, the sets in the order of the folders and of their names.

    Raises:
        ValueError: If there is no such metric, no images, an image is damaged, a model cannot be loaded, or no image
            has a prompt for CLIP to compare it with.
    """
    if not metrics or not set(metrics) <= METRICS.keys():
        given = ", ".join(metrics) if metrics else "none"
        raise ValueError(f"expected metrics of {', '.join(METRICS)}, got {given}")
    if duplicates := {str(folder) for folder in folders if list(folders).count(folder) > 1}:
        raise ValueError(f"expected different folders, got {min(duplicates)} twice")
    found = [(folder, image_set) for folder in folders for image_set in find_sets(folder)]
    if "clip" in metrics and not any(text for _, image_set in found for text in image_set.objects):
        raise ValueError(
            f"expected a prompts.txt with a line for each image in {found[0][1].images[0].parent}: CLIP compares images"
            " with their prompts (without the metric clip, none are needed)"
        )
    models = {name: (models or {}).get(name, model) for name in metrics if (model := METRICS[name].model) is not None}
    encoders = {name: load(models[name], device=device) for name in models if (load := METRICS[name].load) is not None}
    total, done = sum(len(image_set.images) for _, image_set in found), 0
    sets: list[Measures] = []
    for folder, image_set in found:
        values = _measure(image_set, metrics, encoders, batch_size)
        done += len(image_set.images)
        if on_image is not None:
            on_image(done, total)
        group = _group(folder, image_set, several=len(folders) > 1, compared=any(one.is_unaligned for _, one in found))
        name = str(image_set.images[-1].parent) if len(folders) > 1 else image_set.name
        sets.append(Measures(name, group, 1, len(image_set.images), values))
    return Evaluation(tuple(sets), tuple(_groups(sets, metrics)), models)


def _panel(title: str, description: str, rows: Sequence[Measures]) -> Panel:
    columns = [
        Column(METRICS[name].title, [row.values[name] for row in rows], METRICS[name].form) for name in rows[0].values
    ]
    labels = [(row.name, COLORS.get(row.group.rpartition(", ")[2], "#4a78c8")) for row in rows]
    return Panel(title, description, labels, columns)


def _group(folder: Path, image_set: FolderSet, *, several: bool, compared: bool) -> str:
    kind = ("unaligned" if image_set.is_unaligned else "aligned") if compared else ""
    names = [str(folder) if several else "", kind]
    return ", ".join(name for name in names if name) or "all"


def _groups(sets: Sequence[Measures], metrics: Sequence[str]) -> Iterator[Measures]:
    for name in dict.fromkeys(one.group for one in sets):
        members = [one for one in sets if one.group == name]
        values: dict[str, Interval | None] = {}
        for metric in metrics:
            known = [value for one in members if (value := one.values[metric]) is not None]
            # of a single set, the interval over its images: that over sets would have no width
            values[metric] = (
                known[0] if len(known) == 1 else bootstrap_mean([v.value for v in known]) if known else None
            )
        yield Measures(name, name, len(members), sum(one.images for one in members), values)


def _measure(
    image_set: FolderSet, metrics: Sequence[str], encoders: Mapping[str, ImageEncoder], batch_size: int
) -> dict[str, Interval | None]:
    """Measure one set. Its images are read once, a batch at a time."""
    count = len(image_set.images)
    chosen = range(count)
    if count > MAX_IMAGES:
        chosen = [index * (count - 1) // (MAX_IMAGES - 1) for index in range(MAX_IMAGES)]
    features: dict[str, list[NDArray[np.float64]]] = {name: [] for name in encoders}
    palettes: list[NDArray[np.float32]] = []
    for start in range(0, len(chosen), batch_size):
        images = [open_image(image_set.images[index]) for index in chosen[start : start + batch_size]]
        for name, encoder in encoders.items():
            features[name].append(encoder.images(images).double().numpy())
        if "palette" in metrics:
            palettes += map(palette, images)
    values: dict[str, Interval | None] = {}
    for metric in metrics:
        if metric == "clip":
            objects = [image_set.objects[index] for index in chosen]
            values[metric] = _text_alignment(np.concatenate(features[metric]), objects, encoders[metric])
        elif len(chosen) < 2:
            values[metric] = None
        elif metric == "palette":
            values[metric] = bootstrap_pairs(palette_distances(palettes))
        else:
            vectors = np.concatenate(features[metric])
            values[metric] = bootstrap_pairs(vectors @ np.transpose(vectors))
    return values


def _text_alignment(
    images: Float[NDArray[np.float64], "images features"], objects: Sequence[str | None], encoder: ImageEncoder
) -> Interval | None:
    """Compare each image with what it is to show, where that is known."""
    known = {text: None for text in objects if text}
    if not known:
        return None
    vectors = encoder.texts(list(known)).double().numpy()
    texts = dict(zip(known, vectors, strict=True))
    return bootstrap_mean([float(image @ texts[text]) for image, text in zip(images, objects, strict=True) if text])
