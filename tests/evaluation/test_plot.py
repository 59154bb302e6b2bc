import pytest

from style_aligned.evaluation.plot import Column, Panel, choose_ticks, draw_panels
from style_aligned.evaluation.statistics import Interval


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.0, 1.0, [0, 0.5, 1]), (0.27, 0.31, [0.27, 0.28, 0.29, 0.3, 0.31]), (11.0, 39.0, [10, 20, 30, 40]),
     (-0.03, 0.02, [-0.04, -0.02, 0, 0.02]), (0.5, 0.5, [0.5, 0.51])],
)  # fmt: skip
def test_ticks_are_round_numbers_around_the_values(low: float, high: float, ticks: list[float]) -> None:
    assert choose_ticks([Interval((low + high) / 2, low, high)]) == pytest.approx(ticks)


def test_a_bar_spans_its_interval() -> None:
    rows = [("a", "#ff0000"), ("b", "#0000ff"), ("c", "#00ff00")]
    intervals = [Interval(0.5, 0.25, 1.0), Interval(0.0, 0.0, 0.5), None]
    image = draw_panels([Panel("title", "text", rows, [Column("x", intervals, ".2f", (0.0, 1.0))])], scale=1)
    left, right = 262, 1000 - 46 - 20
    pixels = {color: [x for x in range(left - 4, right + 5) for y in (94, 120, 146) if image.getpixel((x, y)) == color]
              for color in ((255, 0, 0), (0, 0, 255), (0, 255, 0))}  # fmt: skip
    width = right - left
    assert min(pixels[255, 0, 0]) == pytest.approx(left + width / 4, abs=2)
    assert max(pixels[255, 0, 0]) == pytest.approx(right, abs=2)
    assert max(pixels[0, 0, 255]) == pytest.approx(left + width / 2, abs=2)
    assert not pixels[0, 255, 0]
