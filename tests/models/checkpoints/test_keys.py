"""The maps, at the published size, without a single weight."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from style_aligned.models.checkpoints.architectures import (
    STABLE_DIFFUSION_1,
    STABLE_DIFFUSION_XL,
    Architecture,
)
from style_aligned.models.checkpoints.files import StoredTensor
from style_aligned.models.checkpoints.keys import Layout, autoencoder_modules, unet_modules
from style_aligned.models.checkpoints.plan import Plan, make_plan
from style_aligned.models.checkpoints.schedule import Schedule
from style_aligned.models.checkpoints.sources import Checkpoint
from style_aligned.models.checkpoints.spelling import canonical_key
from tests.models.checkpoints.narrow import AUTOENCODER_CONFIG, TEXT_G_CONFIG, TEXT_L_CONFIG, UNET_CONFIGS
from tests.models.checkpoints.pipelines import diffusers, quiet, single_file_utils, to_original, transformers

FULL_SIZE = True
ARCHITECTURES = {"xl": STABLE_DIFFUSION_XL, "1": STABLE_DIFFUSION_1}


@pytest.fixture(scope="module")
def parts(kind: str) -> dict[str, Any]:
    with quiet(), torch.device("meta"):
        parts: dict[str, Any] = {
            "unet": diffusers.UNet2DConditionModel(**UNET_CONFIGS[kind]),
            "vae": diffusers.AutoencoderKL(**AUTOENCODER_CONFIG),
            "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT_L_CONFIG)),
        }
        if kind == "xl":
            config = transformers.CLIPTextConfig(**TEXT_G_CONFIG)
            parts["text_encoder_2"] = transformers.CLIPTextModelWithProjection(config)
    return parts


@pytest.fixture(scope="module")
def full_tensors(parts: dict[str, Any]) -> dict[str, Tensor]:
    return {
        canonical_key(f"{part}.{key}"): tensor
        for part, module in parts.items()
        for key, tensor in module.state_dict().items()
    }


def plan_for(architecture: Architecture, layout: Layout, tensors: dict[str, Tensor]) -> Plan:
    stored = {
        key: StoredTensor(path=Path("model"), key=key, dtype=tensor.dtype, shape=tuple(tensor.shape), offset=0)
        for key, tensor in tensors.items()
    }
    checkpoint = Checkpoint("model", Path("model"), layout, architecture, stored, Schedule(), None)
    return make_plan(checkpoint, architecture.build())


def test_every_tensor_of_diffusers_is_used_once(kind: str, full_tensors: dict[str, Tensor]) -> None:
    plan = plan_for(ARCHITECTURES[kind], "diffusers", full_tensors)
    counts = Counter(weight.stored.key for weight in plan.weights)
    assert set(counts.values()) == {1}
    assert set(counts) | set(plan.unused) == set(full_tensors)
    assert len(plan.weights) == {"xl": 2623, "1": 1130}[kind]
    left_out = {".".join(key.split(".")[:4]) for key in plan.unused if "position_ids" not in key}
    skipped = {
        "text_encoder.encoder.layers.11",
        "text_encoder.final_layer_norm.weight",
        "text_encoder.final_layer_norm.bias",
    }
    assert left_out == (skipped if kind == "xl" else set())


def test_every_tensor_of_a_single_file_is_used_once(kind: str, full_tensors: dict[str, Tensor]) -> None:
    plan = plan_for(ARCHITECTURES[kind], "original", to_original(ARCHITECTURES[kind], full_tensors))
    counts = Counter((weight.stored.key, weight.source.third) for weight in plan.weights)
    assert set(counts.values()) == {1}
    thirds = Counter(key for key, third in counts if third is not None)
    assert set(thirds.values()) == ({3} if kind == "xl" else set())
    assert len(thirds) == (2 * 32 if kind == "xl" else 0)
    assert plan.unused == []


def test_diffusers_reads_our_original_names(kind: str, full_tensors: dict[str, Tensor], parts: dict[str, Any]) -> None:
    original = to_original(ARCHITECTURES[kind], full_tensors)
    unet = single_file_utils.convert_ldm_unet_checkpoint(dict(original), config=parts["unet"].config)
    assert_same(unet, full_tensors, "unet.")
    vae = single_file_utils.convert_ldm_vae_checkpoint(dict(original), config=parts["vae"].config)
    assert_same(vae, full_tensors, "vae.")


def test_diffusers_reads_our_weights(
    kind: str, tensors: dict[str, dict[str, Tensor]], architecture: Architecture, pipelines: dict[str, Any]
) -> None:
    original = to_original(architecture, tensors[kind])
    pipeline = pipelines[kind]
    unet = single_file_utils.convert_ldm_unet_checkpoint(dict(original), config=pipeline.unet.config)
    assert_same(unet, tensors[kind], "unet.", values=True)
    vae = single_file_utils.convert_ldm_vae_checkpoint(dict(original), config=pipeline.vae.config)
    assert_same(vae, tensors[kind], "vae.", values=True)
    if kind == "xl":
        prefix = "conditioner.embedders.1.model."
        text = single_file_utils.convert_open_clip_checkpoint(pipeline.text_encoder_2, dict(original), prefix=prefix)
        text = {key.removeprefix("text_model."): tensor for key, tensor in text.items()}
        assert_same(text, tensors[kind], "text_encoder_2.", values=True)


def assert_same(actual: dict[str, Tensor], tensors: dict[str, Tensor], prefix: str, *, values: bool = False) -> None:
    expected = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    expected.pop("embeddings.position_ids", None)
    actual.pop("embeddings.position_ids", None)
    assert {key: tensor.shape for key, tensor in actual.items()} == {key: t.shape for key, t in expected.items()}
    if values:
        assert all(torch.equal(tensor, expected[key]) for key, tensor in actual.items())


def test_the_rules_name_nothing_twice(kind: str) -> None:
    names = [*unet_modules(ARCHITECTURES[kind].unet), *autoencoder_modules()]
    for layout in ("refiners", "diffusers", "original"):
        assert len({getattr(name, layout) for name in names}) == len(names)
