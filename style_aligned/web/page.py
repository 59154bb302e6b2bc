"""The page: one screen, from nothing to a set."""

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from gradio.themes import Base
from gradio.themes.utils.fonts import LocalFont

from style_aligned.sets.image_set import ImageSet, read_image_set
from style_aligned.sets.plan import find_missing
from style_aligned.sets.sources import STYLE_ENDING
from style_aligned.web import view
from style_aligned.web.actions import Actions, Settings
from style_aligned.web.api import add_api
from style_aligned.web.controls import STRENGTH, make_advanced, make_strength, read_controls
from style_aligned.web.errors import tell
from style_aligned.web.jobs import Job

HERE = Path(__file__).parent
CSS = (HERE / "page.css").read_text(encoding="utf-8")
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")
HTML: dict[str, Any] = {"js_on_load": SCRIPT, "apply_default_css": False}
THEME = Base(
    primary_hue="teal",
    neutral_hue="zinc",
    font=[LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_text_color="white",
    color_accent="*primary_700",
    body_text_color_subdued="*neutral_600",
    block_info_text_color="*neutral_600",
    block_label_text_color="*neutral_700",
    block_title_text_color="*neutral_800",
    block_title_text_weight="600",
    input_placeholder_color="*neutral_500",
    input_background_fill="white",
    input_border_width="1px",
    input_border_color="*neutral_400",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color_dark="*neutral_400",
    block_label_text_color_dark="*neutral_300",
    block_title_text_color_dark="*neutral_200",
    input_placeholder_color_dark="*neutral_400",
)
TICK = 1.0  # seconds
NEW = ""  # the choice of no set yet
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def make_page(actions: Actions) -> gr.Blocks:
    """Make the page.

    Args:
        actions: What people do on it.
    """
    return Page(actions).blocks


class Page:
    """The components of the page, and what happens as people use them."""

    def __init__(self, actions: Actions) -> None:
        """Make the components, and tell them what to do."""
        self.actions = actions
        with gr.Blocks(
            title="style-aligned", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)
        ) as self.blocks:
            self.current = gr.State(NEW)
            self.looks = gr.State("")
            self.selected = gr.State(None)
            self.seen = gr.State("")
            self.kind = gr.State("prompt")
            with gr.Row(elem_id="top"):
                gr.HTML("<h1>style-aligned</h1>", **HTML, elem_id="brand")
                self.picker = gr.Dropdown(
                    [("New set", NEW)],
                    value=NEW,
                    label="Set",
                    show_label=False,
                    container=False,
                    elem_id="picker",
                    filterable=False,
                )
                self.new = gr.Button("New set", size="md", elem_id="new")
            with gr.Row(elem_id="columns"):
                with gr.Column(scale=2, min_width=320, elem_id="form"):
                    self._make_form()
                with gr.Column(scale=5, min_width=320, elem_id="main"):
                    self._make_main()
            self.address = gr.HTML("", **HTML, elem_id="address")
            self.timer = gr.Timer(TICK)
            self._connect()
            add_api(actions)
        self.blocks.queue(default_concurrency_limit=None)

    def _make_form(self) -> None:
        with gr.Column(elem_id="new-reference") as self.reference_form:
            with gr.Tabs(elem_id="reference-tabs") as self.tabs:
                with gr.Tab("Prompt", id="prompt") as prompt_tab:
                    self.reference = gr.Textbox(
                        label="Reference", placeholder="a fox, neon sign", info="All images take their style from it.",
                        max_length=2000, elem_id="reference",
                    )  # fmt: skip
                    with gr.Row(elem_id="explore-row"):
                        self.count = gr.Slider(
                            2, 16, value=6, step=1, label="Candidates", min_width=120, elem_id="count"
                        )
                        self.explore = gr.Button("Explore", min_width=80, elem_id="explore")
                with gr.Tab("Picture", id="picture") as picture_tab:
                    self.picture = gr.File(
                        label="Picture", file_types=["image"], height=120, elem_id="picture", show_label=False
                    )
                    self.picture_view = gr.HTML("", **HTML, elem_id="picture-view")
                    self.caption = gr.Textbox(
                        label="What it shows", placeholder="a castle, watercolor", max_length=2000, elem_id="caption",
                        info="And its style. Left empty, the model says it.",
                    )  # fmt: skip
                with gr.Tab("Earlier style", id="style") as style_tab:
                    self.style = gr.Dropdown(
                        [], label="Style", info="Of a set, a candidate or a style file in this folder.", elem_id="style"
                    )
                    self.upload = gr.UploadButton(
                        "Upload a style file", file_types=[STYLE_ENDING], size="sm", elem_id="upload"
                    )
            self.tab_kinds = {"prompt": prompt_tab, "picture": picture_tab, "style": style_tab}
        self.reference_card = gr.HTML("", **HTML, visible=False, elem_id="reference-card")
        self.prompts = gr.Textbox(
            label="Prompts", info="One a line.", lines=5, max_lines=12, elem_id="prompts",
            placeholder="a rocket, neon sign\nan umbrella, neon sign\na cactus, neon sign",
        )  # fmt: skip
        self.controls = make_strength()
        self.draw = gr.Button("Draw the set", variant="primary", size="lg", elem_id="draw")
        self.missing = gr.Button("Draw what is missing", visible=False, elem_id="missing")
        self.downloads = gr.HTML("", **HTML, elem_id="downloads")
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            self.name = gr.Textbox(label="Name of the set", info="Of its folder.", max_length=120, elem_id="name")
            self.controls += make_advanced()
        self.of_reference = next(control.component for control in self.controls if control.name == "")
        self.controls = [control for control in self.controls if control.name]

    def _make_main(self) -> None:
        with gr.Row(elem_id="status"):
            self.job = gr.HTML("", **HTML, elem_id="job")
            self.cancel = gr.Button("Cancel", size="sm", variant="stop", visible=False, elem_id="cancel", min_width=90)
        self.candidates = gr.HTML("", **HTML, elem_id="candidates")
        with gr.Row(elem_id="set"):
            with gr.Column(scale=3, min_width=300):
                self.gallery = gr.HTML("", **HTML, elem_id="gallery")
            with gr.Column(scale=2, min_width=300, visible=False, elem_id="detail") as self.detail:
                self.image = gr.HTML("", **HTML, elem_id="image")
                with gr.Row(elem_id="actions"):
                    self.reroll = gr.Button("Reroll", size="sm", min_width=80, elem_id="reroll")
                    self.compare = gr.Button("Compare", size="sm", min_width=80, elem_id="compare")
                    self.remove = gr.Button("Remove", size="sm", min_width=80, elem_id="remove")
                    self.close = gr.Button("Close", size="sm", min_width=80, elem_id="close")
                with gr.Row(elem_id="rename-row"):
                    self.new_name = gr.Textbox(
                        label="Name", show_label=False, container=False, max_length=120, scale=3, elem_id="new-name"
                    )
                    self.rename = gr.Button("Rename", size="sm", min_width=80, scale=1, elem_id="rename")

    def _connect(self) -> None:
        where = [self.current, self.looks, self.selected]
        shown = [*where, self.style]
        self.outputs = [
            self.picker, self.style, self.reference_form, self.reference_card, self.of_reference, self.name, self.draw,
            self.missing, self.downloads, self.job, self.cancel, self.candidates, self.gallery, self.detail, self.image,
            self.compare, self.address, self.seen,
        ]  # fmt: skip

        def show(event: Any) -> None:
            """Show what has changed by an event."""
            event.then(self.show_all, shown, self.outputs, **QUIET)

        load = self.blocks.load(self.open_address, None, [*where, *self._strength], **QUIET)
        show(load)
        self.timer.tick(self.refresh, [*shown, self.seen], self.outputs, queue=False, **QUIET)
        opened = [*where, self.prompts, *self._strength]
        show(self.picker.input(self.open, self.picker, opened, **QUIET))
        show(self.new.click(lambda: self.open(NEW), None, opened, **QUIET))
        for kind, tab in self.tab_kinds.items():
            tab.select(lambda kind=kind: kind, None, self.kind, **QUIET)

        values = [control.component for control in self.controls]
        drawn = self.draw.click(
            self.start,
            [
                *where,
                self.kind,
                self.reference,
                self.picture,
                self.caption,
                self.style,
                self.prompts,
                self.name,
                *values,
            ],
            [self.current, self.looks, self.prompts, self.name],
            **QUIET,
        )
        show(drawn)
        show(self.missing.click(self.draw_missing, [self.current, *values], None, **QUIET))
        self.picture.change(self.show_picture, self.picture, self.picture_view, **QUIET)
        show(self.upload.upload(self.take_style, self.upload, self.style, **QUIET))
        show(self.explore.click(self.start_exploring, [self.reference, self.count, *values], self.looks, **QUIET))
        show(self.cancel.click(self.cancel_jobs, where[:2], None, **QUIET))
        picked = [self.style, self.tabs, self.kind]
        show(self.candidates.pick(self.pick_candidate, None, picked, **QUIET))
        show(self.gallery.enter(self.enter, None, opened, **QUIET))
        show(self.gallery.pick(self.pick_image, where, [self.selected, self.new_name], **QUIET))
        for html in (self.gallery, self.image):
            show(html.restore(self.restore_image, self.current, None, **QUIET))
        of_image = [self.current, self.selected]
        show(self.reroll.click(self.reroll_image, of_image, None, **QUIET))
        show(self.compare.click(self.compare_image, of_image, None, **QUIET))
        show(self.remove.click(self.remove_image, of_image, self.selected, **QUIET))
        show(self.close.click(lambda: None, None, self.selected, **QUIET))
        for event in (self.rename.click, self.new_name.submit):
            show(event(self.rename_image, [*of_image, self.new_name], None, **QUIET))

    @property
    def _strength(self) -> list[Any]:
        return [control.component for control in self.controls if control.name == STRENGTH]

    def open_address(self, request: gr.Request) -> list[Any]:
        """Open what the address says: the set that was open before people have reloaded the page.

        What they may have written into the prompts by then stays.
        """
        query: Any = request.query_params
        library = self.actions.library
        name = library.folder.name if library.is_single else query.get("set", NEW)
        looks = query.get("looks", "")
        opened = self.open(name if name in library.sets() else NEW, looks if looks in library.looks() else "")
        return [*opened[:3], *opened[4:]]

    def open(self, name: str, looks: str = "") -> list[Any]:
        """Open a set, or the form for a new one."""
        strength = [self._strength_of(name)] if self._strength else []
        return [name, looks, None, "", *strength]

    def enter(self, event: gr.EventData) -> list[Any]:
        """Open a set of those on the first screen."""
        return self.open(event.set)

    def _strength_of(self, name: str) -> float:
        """Return the strength that images of a set have, unless they have one of their own."""
        if name not in self.actions.library.sets():
            return 1.0
        image_set = read_image_set(self.actions.library.path(name))
        made_with = image_set.settings_of(image_set.state.reference.drawing) or image_set.state.style
        return made_with.get("options", {}).get(STRENGTH, 1.0)

    @tell
    def start(
        self,
        current: str,
        looks: str,
        selected: int | None,
        kind: str,
        reference: str,
        picture: str | None,
        caption: str,
        style: str | None,
        prompts: str,
        name: str,
        *values: Any,
    ) -> list[Any]:
        """Have a new set drawn, or images added to the one that is open."""
        settings = read_controls(self.controls, values, strength=self._strength_of(current))
        if current != NEW:
            if not (prompts or "").strip():
                raise ValueError("expected at least one prompt to add, a line each, got none")
            self.actions.add(current, prompts, settings)
            return [current, looks, "", name]
        if kind == "style" and not style:
            raise ValueError("expected one of the styles that are there, got none: pick one, or write a prompt")
        if kind == "picture" and not picture:
            raise ValueError("expected a picture, got none: drop one, or write a prompt")
        style = style if kind == "style" else None
        dropped = Path(picture) if kind == "picture" and picture else None
        text = (reference if dropped is None else caption) or ""
        created = self.actions.create(text, style or "", prompts or "", settings, name or "", dropped)
        return [created, "", "", ""]

    @tell
    def draw_missing(self, current: str, *values: Any) -> None:
        """Have drawn what the set is missing."""
        self.actions.add(current, "", Settings(batch_size=read_controls(self.controls, values).batch_size))

    @tell
    def start_exploring(self, reference: str, count: int, *values: Any) -> str:
        """Have candidates drawn."""
        return self.actions.explore(reference, int(count), read_controls(self.controls, values))

    @tell
    def take_style(self, upload: str) -> Any:
        """Take a style file into the folder, and use it."""
        name = self.actions.take_style(Path(upload))
        return gr.Dropdown(choices=self.actions.library.styles(), value=name)

    @tell
    def show_picture(self, picture: str | None) -> str:
        """Show the picture that was dropped."""
        return "" if picture is None else view.show_picture(Path(picture))

    def cancel_jobs(self, current: str, looks: str) -> None:
        """Cancel what is shown."""
        for name in (current, looks):
            if name:
                self.actions.cancel(name)

    def pick_candidate(self, event: gr.EventData) -> list[Any]:
        """Take a candidate as the reference."""
        styles = self.actions.library.styles()
        return [gr.Dropdown(choices=styles, value=event.style), gr.Tabs(selected="style"), "style"]

    @tell
    def pick_image(self, current: str, looks: str, selected: int | None, event: gr.EventData) -> list[Any]:
        """Select an image, or none if it was selected."""
        image = read_image_set(self.actions.library.path(current)).state.images.get(event.image)
        if image is None or image.id == selected:
            return [None, ""]
        return [image.id, image.name]

    @tell
    def restore_image(self, current: str, event: gr.EventData) -> None:
        """Bring back an image, or an earlier drawing of one."""
        self.actions.restore(current, event.name, event.seed)

    @tell
    def reroll_image(self, current: str, selected: int) -> None:
        """Have an image drawn again."""
        self.actions.reroll(current, selected)

    @tell
    def compare_image(self, current: str, selected: int) -> None:
        """Have an image drawn without the style."""
        self.actions.compare(current, selected)

    @tell
    def remove_image(self, current: str, selected: int) -> None:
        """Take an image out of the set."""
        self.actions.remove(current, selected)

    @tell
    def rename_image(self, current: str, selected: int, new_name: str) -> None:
        """Give an image another name."""
        self.actions.rename(current, selected, new_name)

    def refresh(self, current: str, looks: str, selected: int | None, style: str | None, seen: str) -> list[Any]:
        """Show what has changed since it was last looked at, by whomever."""
        if self._signature(current, looks, selected, style) == seen:
            return [gr.skip()] * len(self.outputs)
        return self.show_all(current, looks, selected, style)

    def _signature(self, current: str, looks: str, selected: int | None, style: str | None) -> str:
        library, jobs = self.actions.library, self.actions.jobs
        parts = [str(selected), style or "", self.actions.model.error, " ".join(library.styles())]
        for name in (current, looks):
            if name in (*library.sets(), *library.looks()):
                job = jobs.of(name)
                parts.append(view.signature(library.path(name), job, jobs.ahead(job) if job is not None else 0))
        return "|".join(parts)

    def show_all(self, current: str, looks: str, selected: int | None, style: str | None) -> list[Any]:
        """Return everything that the page shows. What people are writing stays as it is."""
        library, jobs = self.actions.library, self.actions.jobs
        seen = self._signature(current, looks, selected, style)
        sets = library.sets()
        current = current if current in sets else NEW
        looks = looks if looks in library.looks() else ""
        is_new = current == NEW
        job = jobs.of(current or looks) if current or looks else None
        is_active = job is not None and not job.is_over
        image_set = None if is_new else read_image_set(library.path(current))
        has_missing = image_set is not None and bool(find_missing(image_set).images)
        address = urlencode({key: value for key, value in (("set", current), ("looks", looks)) if value})
        choices = [] if library.is_single else [("New set", NEW)]
        return [
            gr.Dropdown(choices=[*choices, *((name, name) for name in sets)], value=current),
            gr.Dropdown(choices=library.styles()),
            gr.Column(visible=is_new),
            gr.HTML("" if image_set is None else view.show_reference(current, image_set), visible=not is_new),
            gr.Group(visible=is_new),
            gr.Textbox(visible=is_new),
            gr.Button("Draw the set" if is_new else "Add to the set"),
            gr.Button(visible=has_missing and not is_active),
            "" if image_set is None else view.show_downloads(current, image_set),
            self._show_status(job),
            gr.Button(visible=is_active),
            self._show_candidates(looks, style),
            self._show_gallery(current, image_set, job, selected),
            *self._show_detail(current, image_set, selected),
            f'<span data-address="{address}"></span>',
            seen,
        ]

    def _show_status(self, job: Job | None) -> str:
        error = self.actions.model.error
        if job is None and error:
            return f'<div class="job failed" role="alert"><p>{view.escape(error)}</p></div>'
        return view.show_job(job, self.actions.jobs.ahead(job) if job is not None else 0)

    def _show_candidates(self, looks: str, picked: str | None) -> str:
        if not looks:
            return ""
        folder, job = self.actions.library.path(looks), self.actions.jobs.of(looks)
        return view.show_candidates(looks, folder, job, picked)

    def _show_gallery(self, name: str, image_set: ImageSet | None, job: Job | None, selected: int | None) -> str:
        if image_set is None:
            library = self.actions.library
            return view.show_sets({each: library.path(each) for each in library.sets()})
        return view.show_gallery(name, image_set, job, selected)

    def _show_detail(self, name: str, image_set: ImageSet | None, selected: int | None) -> list[Any]:
        image = None if image_set is None or selected is None else image_set.state.images.get(selected)
        if image_set is None or image is None or image.is_removed:
            return [gr.Column(visible=False), "", gr.Button()]
        has_twin = bool(image.drawing.unaligned) and (image_set.folder / image.drawing.unaligned).is_file()
        return [gr.Column(visible=True), view.show_image(name, image_set, image), gr.Button(visible=not has_twin)]
