from pathlib import Path

import pytest

from tests.evaluation.tiny import make_clip, make_csd, make_dino


@pytest.fixture(scope="session")
def encoder_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny models for the metrics that take one, by the name of the metric."""
    folder: Path = tmp_path_factory.mktemp("encoders")
    return {
        "clip": str(make_clip(folder / "clip")),
        "dino": str(make_dino(folder / "dino")),
        "csd": str(make_csd(folder / "csd.safetensors")),
    }
