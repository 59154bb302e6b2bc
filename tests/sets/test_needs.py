"""What drawing takes, about."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from style_aligned.models.mini import Mini
from style_aligned.sets.needs import check_needs, estimate_memory, estimate_seconds


def test_memory_grows_with_pixels_and_images(model: Mini) -> None:
    assert estimate_memory(model, (512, 512), 4) == pytest.approx(4 * estimate_memory(model, (256, 256), 4))
    assert estimate_memory(model, (256, 256), 64) > estimate_memory(model, (256, 256), 1)


def test_what_cannot_work_is_refused_unless_forced(
    model: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(size: int, images: int, force: bool = False) -> list[str]:
        return check_needs(
            model, tmp_path / "new", size=(size, size), batch_size=1, images=images, steps=2, force=force
        )

    def disk_usage(path: Path) -> SimpleNamespace:
        assert path == tmp_path
        return SimpleNamespace(free=10**9)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2 * 10**9))
    assert check(256, 10) == []
    with pytest.raises(
        ValueError, match=r"^images of 8192x8192, 1 at a time, take about .* GB of memory, and there are"
    ):
        check(8192, 1)
    with pytest.raises(ValueError, match=r"^20,000 images of 256x256 take about 2\.1 GB of disk, and 1\.0 GB are free"):
        check(256, 20_000)
    forced = check(8192, 1, force=True)
    assert "choose a smaller --size" in forced[0]


def test_a_long_time_is_said(model: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert estimate_seconds(model, (256, 256), 100) == pytest.approx(estimate_seconds(model, (256, 256), 10) * 10)  # pyright: ignore[reportOptionalOperand]
    warnings = check_needs(model, tmp_path, size=(256, 256), batch_size=1, images=50_000, steps=30)
    assert len(warnings) == 1
    assert warnings[0].startswith("on this CPU in float32, 50,000 images of 256x256 take about ")
