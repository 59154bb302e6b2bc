"""What the user sees while images are drawn."""

import io

import pytest
import rich.console

from style_aligned.cli.console import Progress


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_tells_images_and_steps_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    written, console = io.StringIO(), rich.console.Console

    def fake(**_: object) -> rich.console.Console:
        return console(file=written, force_terminal=is_terminal, width=100)

    monkeypatch.setattr(rich.console, "Console", fake)
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
