"""The same actions for programs: `gradio_client` calls them by their names."""

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.events import api

from style_aligned.sets.image_set import is_set, read_image_set
from style_aligned.web import view
from style_aligned.web.actions import Actions, Settings
from style_aligned.web.errors import tell
from style_aligned.web.jobs import State


def add_api(actions: Actions) -> None:
    """Add an endpoint for each action to the page that is being made. Those that draw wait until it is drawn.

    Args:
        actions: The actions.
    """

    def described(name: str) -> dict[str, Any]:
        return view.describe(name, read_image_set(actions.library.path(name)), actions.jobs.of(name))

    def drawn(name: str) -> dict[str, Any]:
        job = actions.jobs.of(name)
        if job is not None:
            job.wait()
            if job.state == State.failed:
                raise gr.Error(job.message, print_exception=False)
        if is_set(actions.library.path(name)):
            return described(name)
        return {"name": name, "styles": [style for style in actions.library.styles() if style.startswith(f"{name}/")]}

    def sets() -> list[str]:
        """Return the names of the sets."""
        return actions.library.sets()

    def styles() -> list[str]:
        """Return the names of the styles that a new set can have."""
        return actions.library.styles()

    def show(name: str) -> dict[str, Any]:
        """Return what a set has, and how far its job is."""
        return described(name)

    def create(
        reference: str,
        prompts: list[str],
        name: str = "",
        style: str = "",
        settings: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Make a set: of the prompt of a reference, or of a style that is there."""
        return drawn(actions.create(reference, style, "\n".join(prompts), _settings(settings, options), name))

    def explore(
        reference: str, count: int = 6, settings: dict[str, Any] | None = None, options: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Draw candidates for a reference. Each is a style for `create`."""
        return drawn(actions.explore(reference, count, _settings(settings, options)))

    def add(name: str, prompts: list[str], options: dict[str, Any] | None = None) -> dict[str, Any]:
        """Add images to a set, and draw what it is missing."""
        actions.add(name, "\n".join(prompts), _settings(None, options))
        return drawn(name)

    def reroll(name: str, image: str, seed: int | None = None) -> dict[str, Any]:
        """Draw an image again: by its name, its id or a part of its prompt."""
        actions.reroll(name, image, seed)
        return drawn(name)

    def compare(name: str, image: str) -> dict[str, Any]:
        """Draw an image without the style too."""
        actions.compare(name, image)
        return drawn(name)

    def rename(name: str, image: str, new_name: str) -> dict[str, Any]:
        """Give an image another name."""
        actions.rename(name, image, new_name)
        return described(name)

    def remove(name: str, image: str) -> dict[str, Any]:
        """Take an image out of a set."""
        actions.remove(name, image)
        return described(name)

    def restore(name: str, image: str, seed: int | None = None) -> dict[str, Any]:
        """Bring back an image that was removed, or an earlier drawing of one."""
        actions.restore(name, image, seed)
        return described(name)

    def cancel(name: str) -> dict[str, Any]:
        """Cancel what is drawn in a set. What is on the disk stays."""
        actions.cancel(name)
        return described(name)

    functions: list[Callable[..., Any]] = [
        sets,
        styles,
        show,
        create,
        explore,
        add,
        reroll,
        compare,
        rename,
        remove,
        restore,
        cancel,
    ]
    for function in functions:
        api(tell(function), api_name=function.__name__, concurrency_limit=None)


def _settings(settings: dict[str, Any] | None, options: dict[str, Any] | None) -> Settings:
    given = dict(settings or {})
    batch_size = given.pop("batch_size", 4)
    return Settings(given, dict(options or {}), batch_size)
