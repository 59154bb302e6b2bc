"""What the user sees while images are drawn."""

import io
from collections.abc import Callable

import pytest
import rich.console

from style_aligned.cli.progress import Progress

OpenConsole = Callable[..., io.StringIO]


@pytest.fixture
def open_console(monkeypatch: pytest.MonkeyPatch) -> OpenConsole:
    """Have the progress written to a text, as to a terminal if nothing else is said."""
    console = rich.console.Console

    def open_console(*, is_terminal: bool = True, get_time: Callable[[], float] | None = None) -> io.StringIO:
        written = io.StringIO()

        def fake(**_: object) -> rich.console.Console:
            return console(file=written, force_terminal=is_terminal, width=100, get_time=get_time)

        monkeypatch.setattr(rich.console, "Console", fake)
        return written

    return open_console


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_tells_images_and_steps_on_a_terminal_alone(open_console: OpenConsole, is_terminal: bool) -> None:
    written = open_console(is_terminal=is_terminal)
    with Progress.show(images=2, steps=8) as progress:
        progress.describe("a fox, neon sign")
        progress.step(3)
        progress.image()
    said = written.getvalue()
    if not is_terminal:
        assert not said.strip()
        return
    last = said.rsplit("a fox, neon sign", maxsplit=1)[1]
    assert "1/2 images" in last
    assert "3/8 steps" in last
    assert ":" in last  # the time that is left


@pytest.mark.parametrize("prompt", ["a fox [/neon]", "a [bold]fox[/bold]", "a camp :fire:"])
def test_prompts_are_shown_as_they_are(open_console: OpenConsole, prompt: str) -> None:
    written = open_console()
    with Progress.show(images=1, steps=2) as progress:
        progress.describe(prompt)
    assert f"{prompt} " in written.getvalue()


def test_the_time_that_is_left_is_told_for_slow_steps(open_console: OpenConsole) -> None:
    now = 0.0
    written = open_console(get_time=lambda: now)
    with Progress.show(images=1, steps=10) as progress:
        progress.describe("a fox")
        for _ in range(3):
            now += 600
            progress.step()
    assert "1:10:00" in written.getvalue().rsplit("3/10 steps", maxsplit=1)[1]  # 7 steps of 10 minutes
