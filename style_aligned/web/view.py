"""What the page shows of a set, of candidates and of a job, as HTML. Texts of people are escaped, all of them."""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from style_aligned.files import parse_settings, read_texts
from style_aligned.sets.explore import find_candidates
from style_aligned.sets.image_set import ImageSet, read_image_set
from style_aligned.sets.journal import JOURNAL_FILE
from style_aligned.sets.plan import find_missing
from style_aligned.sets.records import Drawing, SetImage
from style_aligned.sets.set_file import SET_FILE
from style_aligned.sets.sheet import sheet_path
from style_aligned.styles.picture import open_picture
from style_aligned.web.jobs import Job, State

THUMBNAIL = 384  # pixels
WELCOME = (
    '<div class="welcome"><h2>A set of images in one style</h2><ol><li>Say what the <b>reference</b> is to look like:'
    " all images follow its style.</li><li>Write <b>prompts</b>, one a line.</li><li>Draw the set. Then reroll, rename,"
    " remove and add, for as long as you like.</li></ol></div>"
)
EARLIER = 8  # drawings of an image that were replaced: the last ones


@dataclass(frozen=True)
class Picture:
    """A file of a set, as the browser asks for it.

    Attributes:
        name: The name of the set.
        folder: Its folder.
        file: The file, relative to the folder.
    """

    name: str
    folder: Path
    file: str

    @property
    def is_there(self) -> bool:
        """Whether there is such a file."""
        return (self.folder / self.file).is_file()

    def url(self, width: int | None = None) -> str:
        """Return its address, which changes when the file does."""
        stat = (self.folder / self.file).stat()
        small = f"&width={width}" if width else ""
        return f"files/{quote(self.name)}/{quote(self.file)}?v={stat.st_mtime_ns:x}-{stat.st_size:x}{small}"


def signature(folder: Path, job: Job | None, ahead: int) -> str:
    """Return what changes whenever there is something else to show of a folder."""
    stats: list[str] = []
    for path in (folder, folder / SET_FILE, folder / JOURNAL_FILE):
        try:
            stat = path.stat()
        except OSError:
            continue
        stats.append(f"{stat.st_mtime_ns:x}-{stat.st_size:x}")
    return " ".join([folder.name, *stats, f"{id(job):x}-{job.version}-{ahead}" if job is not None else ""])


def show_picture(path: Path) -> str:
    """Show a picture that somebody has dropped, in small.

    Raises:
        ValueError: If it is none.
    """
    try:
        image, _ = open_picture(path)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), "the file")) from error
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="dropped" alt="The picture" src="data:image/jpeg;base64,{content}">'


def show_job(job: Job | None, ahead: int) -> str:
    """Return how far a job is, for the line above the images."""
    if job is None:
        return ""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in job.notes)
    if job.state == State.failed:
        return f'<div class="job failed" role="alert"><p>{escape(job.message)}</p>{notes}</div>'
    if job.state == State.cancelled:
        return f'<div class="job"><p>Cancelled. What was done is kept.</p>{notes}</div>'
    if job.state == State.done:
        return f'<div class="job">{notes}</div>' if notes else ""
    if job.state == State.waiting:
        reason = job.message or (f"{ahead} before it" if ahead else "next")
        return f'<div class="job" role="status"><p>Waiting: {escape(job.what)} ({escape(reason)})</p>{notes}</div>'
    percent = 100 * job.steps_done / job.steps if job.steps else 0
    done = f"{min(job.images_done, job.images)} of {job.images}" if job.images else "loading the model"
    left = f" · {_duration(job.seconds_left)} left" if job.seconds_left is not None else ""
    return (
        f'<div class="job"><p><span>{escape(job.what.capitalize())}</span>'
        f'<span class="count" role="status">{done}{left}</span></p>'
        f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"'
        f' aria-valuenow="{percent:.0f}"><div style="width:{percent:.1f}%"></div></div>{notes}</div>'
    )


def show_reference(name: str, image_set: ImageSet) -> str:
    """Return the reference of a set, and what it was made with."""
    reference = image_set.state.reference
    picture = Picture(name, image_set.folder, reference.drawing.file)
    shown = (
        f'<a href="{picture.url()}" target="_blank"><img src="{picture.url(THUMBNAIL)}"'
        f' alt="The reference: {escape(reference.prompt)}"></a>'
        if picture.is_there
        else '<div class="empty">not drawn yet</div>'
    )
    made = image_set.settings_of(reference.drawing)
    facts = [f"seed {reference.drawing.seed}"]
    facts += [f"{made[key]} {word}".strip() for key, word in (("steps", "steps"), ("size", "")) if key in made]
    if "guidance" in made:
        facts.append(f"guidance {made['guidance']:g}")
    return (
        f'<div class="reference">{shown}<div><h2>{escape(reference.prompt)}</h2><p>{escape(" · ".join(facts))}</p>'
        f"</div></div>"
    )


def show_sets(folders: Mapping[str, Path]) -> str:
    """Return the sets that there are, as buttons that open them.

    Args:
        folders: Their folders, by name.
    """
    cards: list[str] = []
    for name, folder in folders.items():
        try:
            image_set = read_image_set(folder)
        except (OSError, ValueError) as error:
            cards.append(f'<li><div class="card broken"><span class="prompt">{escape(str(error))}</span></div></li>')
            continue
        picture = Picture(name, folder, image_set.state.reference.drawing.file)
        shown = '<div class="empty"></div>'
        if picture.is_there:
            shown = f'<img src="{picture.url(THUMBNAIL)}" alt="" loading="lazy">'
        count = len(image_set.state.current)
        cards.append(
            f'<li><button type="button" class="card" data-set="{escape(name)}"><span class="frame">{shown}</span>'
            f'<span class="prompt">{escape(name)}</span><span class="note">{escape(image_set.state.reference.prompt)}'
            f" · {count} image{'' if count == 1 else 's'}</span></button></li>"
        )
    if not cards:
        return WELCOME
    return f'<h2>Sets</h2><ul class="cards" aria-label="Sets">{"".join(cards)}</ul>'


def show_gallery(name: str, image_set: ImageSet, job: Job | None, selected: int | None) -> str:
    """Return the images of a set, as buttons that select them. What is not drawn yet has its place too."""
    missing = {image.id for image in find_missing(image_set).images}
    previews: Mapping[str, bytes] = job.previews if job is not None else {}
    is_active = job is not None and not job.is_over
    cards = [
        _card(name, image_set, image, previews.get(image.drawing.file), image.id in missing, is_active, selected)
        for image in image_set.state.current
    ]
    if not cards:
        return '<p class="hint">No images yet: write prompts, and draw.</p>'
    removed = [image for image in image_set.state.images.values() if image.is_removed]
    gone = "".join(
        f'<li>{escape(image.prompt)} <button type="button" data-restore="{escape(image.name)}"'
        f' aria-label="Bring back {escape(image.prompt)}">Bring back</button></li>'
        for image in removed
    )
    more = f"<details><summary>{len(removed)} removed</summary><ul>{gone}</ul></details>" if removed else ""
    return f'<ul class="cards" aria-label="Images">{"".join(cards)}</ul>{more}'


def _card(
    name: str,
    image_set: ImageSet,
    image: SetImage,
    preview: bytes | None,
    is_missing: bool,
    is_active: bool,
    selected: int | None,
) -> str:
    prompt = escape(image.prompt)
    picture = Picture(name, image_set.folder, image.drawing.file)
    note = f"seed {image.drawing.seed}" + "".join(
        f" · {option.replace('_', ' ')} {value}" for option, value in image.drawing.options.items()
    )
    if preview is not None:
        source = f"data:image/jpeg;base64,{base64.b64encode(preview).decode()}"
        shown, state = f'<img src="{source}" alt="">', "preview"
    elif is_missing or not picture.is_there:
        shown, state = '<div class="empty"></div>', "waiting" if is_active else "missing"
        note = "waits to be drawn" if is_active else "not drawn"
    else:
        shown, state = f'<img src="{picture.url(THUMBNAIL)}" alt="" loading="lazy">', "there"
    return (
        f'<li><button type="button" class="card {state}" data-image="{image.id}" data-state="{state}"'
        f' aria-pressed="{str(image.id == selected).lower()}">'
        f'<span class="frame">{shown}</span><span class="prompt">{prompt}</span>'
        f'<span class="note">{escape(note)}</span></button></li>'
    )


def show_image(name: str, image_set: ImageSet, image: SetImage) -> str:
    """Return an image in large, beside its unaligned twin if there is one, and its earlier drawings."""
    picture = Picture(name, image_set.folder, image.drawing.file)
    if not picture.is_there:
        return f'<p class="hint">{escape(image.prompt)}: not drawn yet.</p>'
    prompt = escape(image.prompt)
    twin = Picture(name, image_set.folder, image.drawing.unaligned) if image.drawing.unaligned else None
    if twin is not None and twin.is_there:
        shown = (
            f'<div class="compare"><img src="{picture.url()}" alt="{prompt}, in the style">'
            f'<img class="over" src="{twin.url()}" alt="{prompt}, without the style">'
            '<span class="left" aria-hidden="true">unaligned</span>'
            '<span class="right" aria-hidden="true">aligned</span>'
            '<input type="range" min="0" max="100" value="50" aria-label="How much is shown without the style"></div>'
        )
    else:
        shown = f'<a href="{picture.url()}" target="_blank"><img src="{picture.url()}" alt="{prompt}"></a>'
    settings = {"prompt": image.prompt, "seed": image.drawing.seed, **_settings(picture.folder / picture.file)}
    copied = escape(json.dumps(settings, ensure_ascii=False, indent=2))
    earlier = "".join(_show_earlier(name, image_set, image, drawing) for drawing in image.replaced[-EARLIER:][::-1])
    earlier = f'<h4>Earlier drawings</h4><ul class="earlier">{earlier}</ul>' if earlier else ""
    return (
        f'<div class="large">{shown}<h3>{prompt}</h3>'
        f'<p class="facts"><span>{escape(image.drawing.file)}</span><span>seed {image.drawing.seed}</span>'
        f'<button type="button" data-copy="{copied}">Copy settings</button>'
        f'<a href="{picture.url()}" download="{escape(image.name)}.png">Download</a></p>{earlier}</div>'
    )


def _show_earlier(name: str, image_set: ImageSet, image: SetImage, drawing: Drawing) -> str:
    picture = Picture(name, image_set.folder, drawing.file)
    if not picture.is_there:
        return ""
    return (
        f'<li><button type="button" data-restore="{escape(image.name)}" data-seed="{drawing.seed}"'
        f' aria-label="Bring back the drawing with seed {drawing.seed}">'
        f'<img src="{picture.url(THUMBNAIL)}" alt=""><span>seed {drawing.seed}</span></button></li>'
    )


def show_candidates(name: str, folder: Path, job: Job | None, picked: str | None) -> str:
    """Return candidates for a reference, as buttons that pick one."""
    cards: list[str] = []
    for number in sorted(find_candidates(folder)):
        picture = Picture(name, folder, f"{number}.png")
        if picture.is_there:
            style = f"{escape(name)}/{number}"
            pressed = str(picked == f"{name}/{number}").lower()
            cards.append(
                f'<li><button type="button" class="card" data-style="{style}" aria-pressed="{pressed}"'
                f' aria-label="Take candidate {number} as the reference">'
                f'<span class="frame"><img src="{picture.url(THUMBNAIL)}" alt=""></span></button></li>'
            )
    waiting = job.images - job.images_done if job is not None and not job.is_over else 0
    previews = list(job.previews.values()) if job is not None else []
    for index in range(max(0, waiting)):
        shown = '<div class="empty"></div>'
        if index < len(previews):
            shown = f'<img src="data:image/jpeg;base64,{base64.b64encode(previews[index]).decode()}" alt="">'
        cards.append(f'<li><div class="card waiting"><span class="frame">{shown}</span></div></li>')
    heading = "Pick the reference" if cards else "Candidates"
    return f'<div class="looks"><h2>{heading}</h2><ul class="strip" aria-label="Candidates">{"".join(cards)}</ul></div>'


def show_downloads(name: str, image_set: ImageSet) -> str:
    """Return links to the contact sheet and to a zip file of a set."""
    sheet = Picture(name, image_set.folder, sheet_path(image_set).name)
    if not sheet.is_there:
        return ""
    return (
        f'<p class="downloads"><a href="{sheet.url()}" download="{escape(name)}-sheet.png">Contact sheet</a>'
        f'<a href="zip/{quote(name)}" download="{escape(name)}.zip">Zip</a></p>'
    )


def describe(name: str, image_set: ImageSet, job: Job | None) -> dict[str, Any]:
    """Return what there is to say of a set, for programs."""
    missing = {image.id for image in find_missing(image_set).images}
    return {
        "name": name,
        "reference": {"prompt": image_set.state.reference.prompt, "seed": image_set.state.reference.drawing.seed},
        "images": [
            {
                "id": image.id,
                "name": image.name,
                "prompt": image.prompt,
                "seed": image.drawing.seed,
                "drawn": image.id not in missing,
                "file": f"files/{quote(name)}/{quote(image.drawing.file)}",
            }
            for image in image_set.state.current
        ],
        "zip": f"zip/{quote(name)}",
        "job": None if job is None else {"what": job.what, "state": job.state.value, "message": job.message},
    }


def _settings(path: Path) -> Mapping[str, Any]:
    return parse_settings(read_texts(path)) or {}


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
