"""What is recognised, and every kind of wrong input."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from style_aligned.models.checkpoints import CheckpointError, convert_checkpoint, load_model
from style_aligned.models.checkpoints.selection import select_weights
from style_aligned.models.checkpoints.sources import open_checkpoint
from tests.models.checkpoints.pipelines import quiet


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    """Stable Diffusion 1.5 alone, which is faster, unless a test asks for both."""
    return getattr(request, "param", "1")


def altered(folder: Path, tmp_path: Path, changes: dict[str, Tensor | None]) -> Path:
    """Copy a diffusers folder with some tensors replaced, added, or (`None`) removed."""
    copy = tmp_path / "altered"
    shutil.copytree(folder, copy)
    for part in {name.partition(".")[0] for name in changes}:
        (file,) = (copy / part).glob("*.safetensors")
        state = load_file(file)
        file.unlink()  # it may be mapped
        for name, tensor in changes.items():
            if name.startswith(f"{part}."):
                state.pop(name.removeprefix(f"{part}."), None)
                if tensor is not None:
                    state[name.removeprefix(f"{part}.")] = tensor.clone()  # two names may be given the same
        save_file(state, file)
    return copy


def refused(path: object, *messages: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_model(str(path))
    for message in messages:
        assert re.search(message, str(caught.value)), str(caught.value)


def same(first: Any, second: Any) -> None:
    expected = first.state_dict()
    state = second.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], weight) for key, weight in expected.items())


@pytest.mark.parametrize("kind", ["xl", "1"], indirect=True)
def test_sharded_and_half_precision_folders(pipeline: Any, folder: Path, tmp_path: Path) -> None:
    with quiet():
        pipeline.save_pretrained(tmp_path / "shards", max_shard_size="3MB")
        pipeline.save_pretrained(tmp_path / "variant", variant="fp16", max_shard_size="3MB")
    assert len(list((tmp_path / "shards" / "unet").glob("*-of-*.safetensors"))) > 1
    assert len(list((tmp_path / "variant" / "unet").glob("*fp16*-of-*.safetensors"))) > 1
    model = load_model(folder)
    same(model, load_model(tmp_path / "shards"))
    same(model, load_model(tmp_path / "variant"))

    first = min((tmp_path / "shards" / "unet").glob("*-00002-of-*.safetensors"))
    first.unlink()
    refused(tmp_path / "shards", rf"unet: the file {re.escape(first.name)} is missing \(\d+ of \d+ are there\)")


def test_which_files_are_selected() -> None:
    name = "diffusion_pytorch_model"
    both = [f"{name}.safetensors", f"{name}.fp16.safetensors", f"{name}.bin", f"{name}.non_ema.safetensors"]
    assert select_weights(both, "unet", prefer_half=False, where="unet") == [f"{name}.safetensors"]
    assert select_weights(both, "unet", prefer_half=True, where="unet") == [f"{name}.fp16.safetensors"]
    old = [f"{name}-0000{i}-of-00002.fp16.safetensors" for i in (2, 1)]
    assert select_weights(old, "unet", prefer_half=False, where="unet") == sorted(old)
    with pytest.raises(CheckpointError, match=r"vae: the weights are there as pickles alone.+never opened"):
        select_weights([f"{name}.bin"], "vae", prefer_half=False, where="vae")
    with pytest.raises(CheckpointError, match=r"text_encoder: no weights; expected model\.safetensors"):
        select_weights(["config.json"], "text_encoder", prefer_half=False, where="text_encoder")


def test_old_names(folders: dict[str, Path], tensors: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    changes: dict[str, Tensor | None] = {}
    for key, tensor in tensors["1"].items():
        if key.startswith("vae.") and ".attentions.0.to_" in key:
            changes[key] = None
            for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
                if f".{new}." in key:
                    changes[key.replace(f".{new}.", f".{old}.")] = tensor
        elif key.startswith("text_encoder."):
            changes[key] = None
            changes[f"text_encoder.text_model.{key.removeprefix('text_encoder.')}"] = tensor
    changes["text_encoder.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    assert len(changes) > 16
    same(load_model(folders["1"]), load_model(altered(folders["1"], tmp_path, changes)))


def test_settings_are_read(folder: Path, tmp_path: Path) -> None:
    copy = altered(folder, tmp_path, {})
    scheduler = copy / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "steps_offset": 5}))
    (copy / "vae" / "config.json").write_text(json.dumps({"scaling_factor": 0.5}))
    for path in (copy, convert_checkpoint(copy, tmp_path / "refiners").target):
        model = load_model(path)
        assert model.solver.params.timesteps_offset == 5
        assert model.lda.encoder_scale == 0.5
    scheduler.write_text(json.dumps({"prediction_type": "sample"}))
    refused(copy, r"scheduler_config\.json: a model that predicts 'sample'; expected 'epsilon' \(noise\) or 'v_pred")
    scheduler.write_text("{")
    refused(copy, r"scheduler_config\.json: not a JSON file")
    scheduler.write_text("[]")
    refused(copy, r"scheduler_config\.json: expected a JSON object")


def test_nothing_there(tmp_path: Path) -> None:
    refused(
        tmp_path / "none.safetensors", r"none\.safetensors: no such file or folder, and no name on the Hugging Face hub"
    )
    refused(tmp_path, "no model; expected a diffusers folder .+ or one in Refiners' format .with unet.safetensors")


def test_a_missing_tensor(folder: Path, tmp_path: Path) -> None:
    copy = altered(folder, tmp_path, {"vae.decoder.conv_in.weight": None, "vae.decoder.conv_in.bias": None})
    refused(
        copy,
        r"altered/vae/diffusion_pytorch_model\.safetensors: the tensor 'vae\.decoder\.conv_in\.weight' is missing "
        r"\(and 1 more\); this is no complete Stable Diffusion",
    )


def test_an_extra_tensor(folder: Path, tmp_path: Path) -> None:
    copy = altered(folder, tmp_path, {"unet.conv_in.scale": torch.zeros(1)})
    refused(
        copy, r"diffusion_pytorch_model\.safetensors: the tensor 'unet\.conv_in\.scale' has no place in Stable Diff"
    )


def test_a_wrong_shape(folder: Path, tmp_path: Path) -> None:
    copy = altered(folder, tmp_path, {"unet.conv_out.weight": torch.zeros(4, 32, 1, 3)})
    refused(
        copy, r"unet/diffusion_pytorch_model\.safetensors: 'conv_out\.weight' has shape \(4, 32, 1, 3\), which does not"
    )


def test_quantised_weights(folder: Path, tmp_path: Path) -> None:
    copy = altered(folder, tmp_path, {"unet.conv_out.bias": torch.zeros(4, dtype=torch.int8)})
    refused(copy, r"'conv_out\.bias' holds int8 numbers; quantised weights are not supported")


def test_the_same_tensor_under_two_names(folder: Path, tmp_path: Path) -> None:
    bias = torch.zeros(32)
    changes: dict[str, Tensor | None] = {f"text_encoder.{p}final_layer_norm.bias": bias for p in ("", "text_model.")}
    refused(
        altered(folder, tmp_path, changes), r"model\.safetensors: the tensor '.*final_layer_norm\.bias' is there twice"
    )


def test_truncated(folder: Path, single_file: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(single_file.read_bytes()[:-10])
    refused(tmp_path / "model.safetensors", r"model\.safetensors: truncated \(")
    copy = altered(folder, tmp_path, {})
    file = copy / "text_encoder" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    refused(copy, r"text_encoder/model\.safetensors: truncated \(")


def test_a_pickle(tmp_path: Path, folder: Path) -> None:
    torch.save({"state_dict": {"model.diffusion_model.x": torch.zeros(1)}}, tmp_path / "v1-5.ckpt")
    refused(tmp_path / "v1-5.ckpt", r"v1-5\.ckpt: a pickle, .+ never opened here\. .+ convert the file once")
    refused(tmp_path, r"v1-5\.ckpt: a pickle")
    copy = altered(folder, tmp_path, {})
    (copy / "unet" / "diffusion_pytorch_model.safetensors").rename(copy / "unet" / "diffusion_pytorch_model.bin")
    refused(copy, r"altered/unet: the weights are there as pickles alone")


@pytest.mark.parametrize(
    ("key", "shape", "what"),
    [
        ("lora_unet_down_blocks_0.lora_up.weight", (4, 4), "a LoRA"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k.lora_A.weight", (4, 4), "a LoRA"),
        ("base_model.model.lokr_w1", (4, 4), "a LoRA"),
        ("controlnet_cond_embedding.conv_in.weight", (4, 4), "a ControlNet"),
        ("control_model.input_hint_block.0.weight", (4, 4), "a ControlNet"),
        ("ip_adapter.1.to_k_ip.weight", (4, 4), "an IP-Adapter"),
        ("emb_params", (4, 4), "an embedding"),
        ("cond_stage_model.model.ln_final.bias", (4,), r"Stable Diffusion 2\.x"),
        ("conditioner.embedders.0.model.ln_final.bias", (4,), "the refiner of Stable Diffusion XL"),
        ("model.diffusion_model.joint_blocks.0.x", (4,), "Stable Diffusion 3"),
        ("double_blocks.0.img_mod.lin.bias", (4,), "FLUX"),
        ("model.diffusion_model.double_blocks.0.img_mod.lin.bias", (4,), "FLUX"),
        ("edm_vpred.sigma_max", (1,), "a model with noise levels in the way of EDM"),
        ("encoder.conv_in.weight", (4, 4), "no model with the original names"),
        ("decoder.up.0.block.0.conv1.weight", (4, 4), "an autoencoder alone"),
        ("input_blocks.0.0.weight", (4, 4), "a U-Net alone"),
        ("text_model.final_layer_norm.bias", (4,), "a text encoder alone"),
        ("model.diffusion_model.input_blocks.0.0.weight", (320, 9, 3, 3), "an inpainting model"),
        (
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
            (320, 1024),
            r"Stable Diffusion 2\.x",
        ),
        ("something.else", (4,), "no model with the original names"),
    ],
)
def test_another_kind_of_file(tmp_path: Path, key: str, shape: tuple[int, ...], what: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({key: torch.zeros(shape)}, path)
    refused(
        path, rf"other\.safetensors: {what}", re.escape(repr(key)), "expected Stable Diffusion XL or Stable Diffusion 1"
    )


def test_another_kind_of_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    refused(tmp_path, "a part of the kind 'ControlNetModel' alone; expected")
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    refused(tmp_path, "a LoRA")
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    refused(tmp_path, "a model of the kind 'FluxPipeline', which has no U-Net; expected")

    width = torch.zeros(128, 1024)
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    refused(
        altered(folders["1"], tmp_path, {key: width}), r"Stable Diffusion 2\.x \('mid_block.+ has shape \(128, 1024\)\)"
    )
    copy = altered(folders["xl"], tmp_path / "refiner", {})
    shutil.rmtree(copy / "text_encoder")
    refused(copy, "the refiner of Stable Diffusion XL")


@pytest.mark.parametrize("kind", ["xl", "1"], indirect=True)
def test_a_folder_of_refiners(folder: Path, single_file: Path, tmp_path: Path, kind: str) -> None:
    target = convert_checkpoint(single_file, tmp_path / "refiners").target
    assert open_checkpoint(target).layout == "refiners"
    same(load_model(folder), load_model(target))
    if kind == "xl":  # the names that Refiners' documentation uses
        (target / "clip_text_encoder.safetensors").rename(target / "DoubleCLIPTextEncoder.safetensors")
        (target / "unet.safetensors").rename(target / "sdxl-unet.safetensors")
        same(load_model(folder), load_model(target))
    (target / "lda.safetensors").unlink()
    refused(target, r"refiners: the file lda\.safetensors is missing")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("scheduler/scheduler", {"_class_name": "EDMDPMSolverMultistepScheduler"}, "noise levels in the way of EDM"),
        ("scheduler/scheduler", {"trained_betas": [0.1, 0.2]}, "betas of its own"),
        ("scheduler/scheduler", {"num_train_timesteps": 10**9}, "expected 2 to 10000 timesteps"),
        ("scheduler/scheduler", {"num_train_timesteps": float("inf")}, "settings that make no sense"),
        ("scheduler/scheduler", {"beta_start": 0}, "betas that grow between 0 and 1"),
        ("scheduler/scheduler", {"beta_end": float("nan")}, "betas that grow between 0 and 1"),
        ("scheduler/scheduler", {"steps_offset": -1}, "an offset among them"),
        ("vae/", {"latents_mean": [0.1] * 4}, "an autoencoder with latents_mean"),
        ("vae/", {"scaling_factor": 0}, "expected a positive number as the scale of latents, got 0"),
        ("vae/", {"scaling_factor": float("nan")}, "as the scale of latents, got nan"),
        ("vae/", {"scaling_factor": "0.13"}, "as the scale of latents, got '0.13'"),
    ],
)
def test_settings_that_refiners_cannot_have(
    folder: Path, tmp_path: Path, part: str, changes: dict[str, Any], message: str
) -> None:
    copy = altered(folder, tmp_path, {})
    file = copy / f"{part}{'_' if part[-1] != '/' else ''}config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    refused(copy, re.escape(str(file)), message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("[", "not a JSON file"),
        ("[]", "expected a JSON object"),
        ('{"schedule": 3}', "expected a schedule of several numbers, got 3"),
        ('{"schedule": {"beta_schedule": "cosine"}}', "a beta schedule 'cosine'"),
        ('{"schedule": {"num_train_timesteps": 1000000000}}', "expected 2 to 10000 timesteps"),
        ('{"encoder_scale": "large"}', "as the scale of latents, got 'large'"),
        (None, "not a JSON file"),
    ],
)
def test_a_folder_of_refiners_with_other_settings(
    folder: Path, tmp_path: Path, settings: str | None, message: str
) -> None:
    target = convert_checkpoint(folder, tmp_path / "refiners").target
    file = target / "clip_text_encoder.safetensors"
    state = load_file(file)
    file.unlink()  # it may be mapped
    save_file(state, file, {"converter": "1", **({} if settings is None else {"settings": settings})})
    refused(target, re.escape(str(file)), message)


def test_a_user_that_there_is_none() -> None:
    refused("~nosuchuser/model", "~nosuchuser/model: ")
    with pytest.raises(CheckpointError, match="~nosuchuser/new: "):
        convert_checkpoint("model", "~nosuchuser/new")
