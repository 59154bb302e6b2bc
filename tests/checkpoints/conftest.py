from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from style_aligned.checkpoints import sources
from style_aligned.checkpoints.architectures import Architecture, canonical_key
from tests.checkpoints.narrow import NARROW, NARROW_1, NARROW_XL
from tests.checkpoints.pipelines import make_pipeline, quiet, to_original


@pytest.fixture(scope="session", params=["xl", "1"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def architecture(kind: str) -> Architecture:
    return NARROW[kind]


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tokenizer")
    return {kind: make_pipeline(kind, folder) for kind in NARROW}


@pytest.fixture(scope="session")
def folders(pipelines: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pipelines, as diffusers saves them."""
    folders = {kind: tmp_path_factory.mktemp("diffusers") / kind for kind in pipelines}
    with quiet():
        for kind, pipeline in pipelines.items():
            pipeline.save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="session")
def tensors(folders: dict[str, Path]) -> dict[str, dict[str, Tensor]]:
    """What is in the folders, by canonical key."""
    return {
        kind: {
            canonical_key(f"{file.parent.name}.{key}"): tensor
            for file in folder.glob("*/*.safetensors")
            for key, tensor in load_file(file).items()
        }
        for kind, folder in folders.items()
    }


@pytest.fixture(scope="session")
def single_files(tensors: dict[str, dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights with the original names, and what else published files hold."""
    folder = tmp_path_factory.mktemp("single")
    files: dict[str, Path] = {}
    for kind, architecture in NARROW.items():
        state = to_original(architecture, tensors[kind])
        state["alphas_cumprod"] = torch.rand(1000)
        state["model_ema.decay"] = torch.zeros(())
        prefix = architecture.text_encoders[0].original
        state[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
        if kind == "xl":  # the end of the first text encoder, which SDXL has no use for
            for key, tensor in tensors[kind].items():
                if key.startswith(("text_encoder.encoder.layers.11.", "text_encoder.final_layer_norm.")):
                    state[prefix + key.removeprefix("text_encoder.")] = tensor
            state["conditioner.embedders.1.model.logit_scale"] = torch.zeros(())
        files[kind] = folder / f"{kind}.safetensors"
        save_file(state, files[kind])
    return files


@pytest.fixture(autouse=True, scope="module")
def narrow(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let everything be loaded into models of a fraction of the width, but in modules that set `FULL_SIZE`."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if not getattr(request.module, "FULL_SIZE", False):
            monkeypatch.setattr(sources, "STABLE_DIFFUSION_XL", NARROW_XL)
            monkeypatch.setattr(sources, "STABLE_DIFFUSION_1", NARROW_1)
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
