from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from style_aligned.models.checkpoints import sources
from style_aligned.models.checkpoints.architectures import Architecture
from style_aligned.models.checkpoints.schedule import Schedule
from style_aligned.models.checkpoints.spelling import canonical_key
from style_aligned.models.extras import lora
from tests.models.checkpoints.narrow import NARROW, NARROW_1, SHALLOW_XL
from tests.models.checkpoints.pipelines import make_pipeline, quiet, to_original


@pytest.fixture(scope="session", params=["xl", "1"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def architecture(kind: str) -> Architecture:
    return NARROW[kind]


T = TypeVar("T")


class Made(dict[str, T]):
    """What is made of each kind of model, once somebody asks for it."""

    def __init__(self, make: Callable[[str], T]) -> None:
        self.make = make

    def __missing__(self, kind: str) -> T:
        self[kind] = self.make(kind)
        return self[kind]


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return Made(lambda kind: make_pipeline(kind, tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="session")
def folders(pipelines: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pipelines, as diffusers saves them."""

    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("diffusers") / kind
        with quiet():
            pipelines[kind].save_pretrained(folder)
        return folder

    return Made(make)


@pytest.fixture(scope="session")
def tensors(folders: dict[str, Path]) -> dict[str, dict[str, Tensor]]:
    """What is in the folders, by canonical key."""
    return Made(
        lambda kind: {
            canonical_key(f"{file.parent.name}.{key}"): tensor
            for file in folders[kind].glob("*/*.safetensors")
            for key, tensor in load_file(file).items()
        }
    )


@pytest.fixture(scope="session")
def single_files(tensors: dict[str, dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights with the original names, and what else published files hold."""

    def make(kind: str) -> Path:
        architecture = NARROW[kind]
        state = to_original(architecture, tensors[kind])
        state["alphas_cumprod"] = Schedule().alphas_cumprod
        state["model_ema.decay"] = torch.zeros(())
        prefix = architecture.text_encoders[0].original
        state[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
        if kind == "xl":  # the end of the first text encoder, which SDXL has no use for
            for key, tensor in tensors[kind].items():
                if key.startswith(("text_encoder.encoder.layers.11.", "text_encoder.final_layer_norm.")):
                    state[prefix + key.removeprefix("text_encoder.")] = tensor
            state["conditioner.embedders.1.model.logit_scale"] = torch.zeros(())
        file = tmp_path_factory.mktemp("single") / f"{kind}.safetensors"
        save_file(state, file)
        return file

    return Made(make)


@pytest.fixture(autouse=True, scope="module")
def narrow(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let everything be loaded into models of a fraction of the width, but in modules that set `FULL_SIZE`."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if not getattr(request.module, "FULL_SIZE", False):
            xl = getattr(request.module, "ARCHITECTURE_XL", SHALLOW_XL)
            for module in (sources, lora):
                monkeypatch.setattr(module, "STABLE_DIFFUSION_XL", xl)
                monkeypatch.setattr(module, "STABLE_DIFFUSION_1", NARROW_1)
        yield


@pytest.fixture
def folder(kind: str, folders: dict[str, Path]) -> Path:
    return folders[kind]


@pytest.fixture
def single_file(kind: str, single_files: dict[str, Path]) -> Path:
    return single_files[kind]


@pytest.fixture
def pipeline(kind: str, pipelines: dict[str, Any]) -> Any:
    return pipelines[kind]
