"""Complete models under all spellings that have existed, and what no model needs."""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from style_aligned.models.checkpoints import CheckpointError, convert_checkpoint, load_model
from style_aligned.models.checkpoints.keys import autoencoder_modules, unet_modules
from style_aligned.models.checkpoints.spelling import canonical_key
from tests.models.checkpoints.conftest import Made
from tests.models.checkpoints.narrow import NARROW
from tests.models.checkpoints.test_sources import altered, refused, same

State = dict[str, Tensor]
Pick = Callable[[str], Any]


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "1")


@pytest.fixture
def state(single_file: Path) -> State:
    return load_file(single_file)


@pytest.fixture(scope="module")
def usual(single_files: dict[str, Path], narrow: None) -> Made[Any]:
    """The models with the usual names."""
    return Made(lambda kind: load_model(single_files[kind]))


def write(tmp_path: Path, state: State, name: str = "model") -> Path:
    path = tmp_path / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return path


def renamed(state: State, *rules: tuple[str, str]) -> State:
    """Rename tensors by patterns. Each rule has to hold for some of them."""
    for pattern, replacement in rules:
        assert any(re.search(pattern, key) for key in state), pattern
        state = {re.sub(pattern, replacement, key): tensor for key, tensor in state.items()}
    return state


def as_linear(state: State) -> State:
    return {key: t[:, :, 0, 0] if "attn_1" in key and t.ndim == 4 else t for key, t in state.items()}


def in_diffusers_names(state: State, kind: str) -> State:
    """Give U-Net and autoencoder of a single file diffusers' names."""
    names = {name.original: name.spellings("original")[1] for name in unet_modules(NARROW[kind].unet)}
    names |= {name.original: name.spellings("original")[1] for name in autoencoder_modules()}
    modules = {key: key.rpartition(".")[0] for key in state}
    return {
        key.replace(modules[key], names[modules[key]]) if modules[key] in names else key: t for key, t in state.items()
    }


def split_open_clip(state: State) -> State:
    """Spell SDXL's second text encoder in a single file as transformers does."""
    spelled: State = {}
    prefix = "conditioner.embedders.1.model."
    for key, tensor in state.items():
        name = key.removeprefix(prefix)
        for pattern, replacement in [
            (r"^transformer\.resblocks\.", "encoder.layers."), (r"\.ln_([12])\.", r".layer_norm\1."),
            (r"\.attn\.out_proj\.", ".self_attn.out_proj."), (r"\.mlp\.c_fc\.", ".mlp.fc1."),
            (r"\.mlp\.c_proj\.", ".mlp.fc2."), (r"^ln_final\.", "final_layer_norm."),
            (r"^token_embedding\.", "embeddings.token_embedding."),
            (r"^positional_embedding$", "embeddings.position_embedding.weight"),
        ]:  # fmt: skip
            name = re.sub(pattern, replacement, name)
        if not key.startswith(prefix):
            spelled[key] = tensor
        elif match := re.fullmatch(r"(.+)\.attn\.in_proj_(weight|bias)", name):
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                spelled[
                    f"conditioner.embedders.1.transformer.text_model.{match[1]}.self_attn.{letter}_proj.{match[2]}"
                ] = third
        elif name == "text_projection":
            spelled["conditioner.embedders.1.transformer.text_projection.weight"] = tensor.T
        else:
            spelled[f"conditioner.embedders.1.transformer.text_model.{name}"] = tensor
    return spelled


ATTENTION = [
    (r"(attn_1)\.q\.", r"\1.to_q."), (r"(attn_1)\.k\.", r"\1.to_k."), (r"(attn_1)\.v\.", r"\1.to_v."),
    (r"(attn_1)\.proj_out\.", r"\1.to_out.0."),
]  # fmt: skip
OLD_ATTENTION = [
    (r"(attn_1)\.q\.", r"\1.query."), (r"(attn_1)\.k\.", r"\1.key."), (r"(attn_1)\.v\.", r"\1.value."),
    (r"(attn_1)\.proj_out\.", r"\1.proj_attn."),
]  # fmt: skip
ONE: dict[str, Callable[[State], State]] = {
    "linear attention of the autoencoder": lambda s: as_linear(renamed(s, *ATTENTION)),
    "older attention of the autoencoder": lambda s: as_linear(renamed(s, *OLD_ATTENTION)),
    "no text_model": lambda s: renamed(s, (r"^(cond_stage_model\.transformer)\.text_model\.", r"\1.")),
    "no transformer": lambda s: renamed(s, (r"^cond_stage_model\.transformer\.text_model\.", "cond_stage_model.")),
    "compiled": lambda s: renamed(s, (r"^model\.diffusion_model\.", "model.diffusion_model._orig_mod.")),
    "compiled deep inside": lambda s: renamed(s, (r"^(first_stage_model\.decoder)\.", r"\1._orig_mod.")),
    "parallel": lambda s: renamed(s, (r"^", "module.")),
    "diffusers' names": lambda s: in_diffusers_names(s, "1"),
}
XL: dict[str, Callable[[State], State]] = {
    "linear projection": lambda s: {
        f"{key}.weight" if key.endswith("text_projection") else key: t.T if key.endswith("text_projection") else t
        for key, t in s.items()
    },
    "no text_model": lambda s: renamed(s, (r"^(conditioner\.embedders\.0\.transformer)\.text_model\.", r"\1.")),
    "transformers' names": split_open_clip,
    "diffusers' names and attention": lambda s: in_diffusers_names(s, "xl"),
}


@pytest.mark.parametrize("spelling", ONE)
def test_spellings_of_stable_diffusion_1(spelling: str, state: State, usual: Made[Any], tmp_path: Path) -> None:
    same(usual["1"], load_model(write(tmp_path, ONE[spelling](state))))


@pytest.mark.parametrize("kind", ["xl"], indirect=True)
@pytest.mark.parametrize("spelling", XL)
def test_spellings_of_stable_diffusion_xl(spelling: str, state: State, usual: Made[Any], tmp_path: Path) -> None:
    same(usual["xl"], load_model(write(tmp_path, XL[spelling](state))))


def test_the_same_name_for_all() -> None:
    for key in (
        "vae.decoder.mid_block.attentions.0.proj_attn.weight",
        "vae.decoder.mid_block.attentions.0.to_out.0.weight",
    ):
        assert canonical_key(key) == "vae.decoder.mid_block.attentions.0.to_out.0.weight"
    for names in (*unet_modules(NARROW["xl"].unet), *autoencoder_modules()):
        for name in (names.refiners, names.diffusers, names.original):
            assert canonical_key(f"{name}.weight") == f"{name}.weight"


LEFTOVERS = {
    "1": [
        "cond_stage_model.transformer.text_projection.weight", "cond_stage_model.transformer.logit_scale",
        "cond_stage_model.transformer.vision_model.post_layernorm.weight", "cond_stage_model.logit_scale",
        "embedding_manager.initial_embeddings", "model_ema.decay", "first_stage_model.loss.logvar",
        "first_stage_model.model_ema.decay", "safety_checker.concept_embeds", "log_one_minus_alphas_cumprod",
        "posterior_mean_coef1", "model.diffusion_model.scaled_fp8", "model_sampling.log_sigmas", "global_step",
    ],
    "xl": [
        "conditioner.embedders.0.transformer.text_projection.weight", "conditioner.embedders.0.text_projection.weight",
        "conditioner.embedders.0.logit_scale", "conditioner.embedders.1.logit_scale",
        "conditioner.embedders.1.model.attn_mask", "conditioner.embedders.2.x",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["xl", "1"], indirect=True)
def test_leftovers(kind: str, state: State, usual: Made[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, {**state, **{key: torch.zeros(2, 2) for key in LEFTOVERS[kind]}})
    expected = usual[kind]
    with caplog.at_level(logging.INFO, logger="style_aligned"):
        same(expected, load_model(path))
    (record,) = caplog.records
    assert f"{path}: left out, as no model needs it: " in record.getMessage()
    assert all(key in record.getMessage() for key in LEFTOVERS[kind])


def test_leftovers_of_a_folder(folder: Path, tmp_path: Path) -> None:
    keys = ("text_encoder.text_projection.weight", "text_encoder.logit_scale", "unet.scaled_fp8")
    copy = altered(folder, tmp_path, dict.fromkeys(keys, torch.zeros(2, 2)))
    same(load_model(folder), load_model(copy))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("scaled", [False, True])
def test_numbers_of_eight_bits(dtype: torch.dtype, scaled: bool, state: State, tmp_path: Path) -> None:
    packed: State = {}
    expected = dict(state)
    for key, tensor in state.items():
        if not key.startswith("model.diffusion_model.") or not key.endswith(".weight"):
            packed[key] = tensor
            continue
        name = key.removesuffix("weight")
        scale = torch.tensor(1.0)
        if scaled and tensor.ndim == 2:
            scale = tensor.abs().amax(dim=1) / 400 if "time_embed" in key else tensor.abs().max() / 400
            packed[name + ("weight_scale" if "time_embed" in key else "scale_weight")] = scale
            packed[f"{name}scale_input"] = torch.ones(())
        columns = scale.reshape(-1, *[1] * (tensor.ndim - 1))
        packed[key] = (tensor / columns).to(dtype)
        expected[key] = packed[key].float() * columns
    packed["scaled_fp8"] = torch.zeros(2, dtype=dtype)
    path, unpacked = write(tmp_path, packed), write(tmp_path, expected, "expected")
    same(load_model(unpacked), load_model(path))
    half = load_model(path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    same(load_model(unpacked, dtype=torch.bfloat16), half)
    same(load_model(unpacked), load_model(convert_checkpoint(path, tmp_path / "refiners").target))


def test_scales_of_another_size(state: State, tmp_path: Path) -> None:
    path = write(tmp_path, {**state, "model.diffusion_model.time_embed.0.scale_weight": torch.ones(3)})
    refused(
        path, r"'model\.diffusion_model\.time_embed\.0\.scale_weight' has shape \(3,\); expected one number, or one"
    )


@pytest.mark.parametrize("form", ["file", "folder", "pipeline", "refiners", "model", "diffusers file"])
def test_an_autoencoder_of_its_own(
    form: str, state: State, folder: Path, single_file: Path, tmp_path: Path, usual: Made[Any]
) -> None:
    without = write(tmp_path, {key: t for key, t in state.items() if not key.startswith("first_stage_model.")})
    refused(
        without,
        r"model\.safetensors: it has the U-Net and the text encoder of Stable Diffusion 1\.5, but no autoencoder",
        r"give one with --vae, or load_model\(vae=…\)",
    )
    alone = {k.removeprefix("first_stage_model."): t for k, t in state.items() if k.startswith("first_stage_model.")}
    paths = {
        "file": lambda: write(tmp_path, alone, "vae"),
        "folder": lambda: folder / "vae",
        "pipeline": lambda: folder,
        "refiners": lambda: convert_checkpoint(single_file, tmp_path / "refiners").target,
        "model": lambda: single_file,
        "diffusers file": lambda: folder / "vae" / "diffusion_pytorch_model.safetensors",
    }
    model, expected = load_model(without, vae=paths[form]()), usual["1"]
    same(expected, model)
    assert model.lda.encoder_scale == expected.lda.encoder_scale


def test_another_autoencoder(state: State, folder: Path, tmp_path: Path) -> None:
    key = "decoder.conv_in.bias"
    alone = {k.removeprefix("first_stage_model."): t for k, t in state.items() if k.startswith("first_stage_model.")}
    path = write(tmp_path, {**alone, key: alone[key] + 1}, "other")
    model, expected = load_model(folder, vae=path), load_model(folder)
    assert torch.equal(
        model.lda.state_dict()["Decoder.Conv2d_2.bias"], expected.lda.state_dict()["Decoder.Conv2d_2.bias"] + 1
    )
    same(expected.unet, model.unet)
    for vae, message in [
        (tmp_path / "none.safetensors", r"none\.safetensors: no such file or folder; expected an autoencoder"),
        (write(tmp_path, {"x": torch.zeros(1)}, "x"), r"x\.safetensors: it holds no autoencoder"),
        (
            write(tmp_path, {**alone, key: torch.zeros(3)}, "y"),
            r"y\.safetensors: 'decoder\.conv_in\.bias' has shape \(3,\)",
        ),
        (write(tmp_path, {k: t for k, t in alone.items() if k != key}, "z"), "conv_in.bias' is missing"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            load_model(folder, vae=vae)
    copied = tmp_path / "vae"
    shutil.copytree(folder / "vae", copied)
    (copied / "config.json").write_text('{"scaling_factor": 0.13025}')
    with pytest.raises(
        CheckpointError, match=r"latents are scaled by 0\.13025; expected one for Stable Diffusion 1\.5"
    ):
        load_model(folder, vae=copied)
    with pytest.raises(ValueError, match="the embedded model is complete, with one schedule; expected no vae"):
        load_model("mini", vae=path)


def test_variants_of_a_folder(folder: Path, tmp_path: Path) -> None:
    expected = load_model(folder)
    for variant in ("bf16", "non_ema", "fp16"):
        copy = tmp_path / variant
        shutil.copytree(folder, copy)
        for file in copy.glob("*/*.safetensors"):
            file.rename(file.with_name(file.name.replace(".safetensors", f".{variant}.safetensors")))
        same(expected, load_model(copy))


def test_what_is_there_and_what_is_missing(folders: dict[str, Path], state: State, tmp_path: Path) -> None:
    copy = tmp_path / "unet-only"
    shutil.copytree(folders["xl"] / "unet", copy / "unet")
    refused(
        copy, r"unet-only: it has the U-Net of Stable Diffusion XL, but no autoencoder and no text encoder \(such as"
    )
    refused(
        write(tmp_path, {key: t for key, t in state.items() if not key.startswith("cond_stage_model.")}),
        "it has the U-Net and the autoencoder of Stable Diffusion 1.5, but no text encoder",
    )
    refused(
        write(tmp_path, {k: t for k, t in state.items() if "middle_block.1." not in k}),
        r"middle_block\.1\.norm\.weight' is missing .and 25 more.; this is a smaller U-Net .+ .such as SSD-1B",
    )
    lcm = {**state, "model.diffusion_model.time_embed.cond_proj.weight": torch.zeros(32, 256)}
    refused(write(tmp_path, lcm), "a latent consistency model, whose U-Net takes the guidance as an input")


def test_files_that_are_something_else(folder: Path, tmp_path: Path) -> None:
    copy = altered(folder, tmp_path, {})
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 5135149760\n")
    refused(copy, r"diffusion_pytorch_model\.safetensors: a pointer of git-lfs, not the file itself; run: git lfs pull")
    file.write_text("<!DOCTYPE html><html>Sign in</html>")
    refused(copy, "a web page, not the file itself; download it again")
    style = tmp_path / "style.safetensors"
    save_file({"latents": torch.zeros(1)}, style, {"style_aligned": "{}"})
    refused(style, r"style\.safetensors: a style, not a model")
    (tmp_path / "files").mkdir()
    shutil.copy(style, tmp_path / "files" / "sd.safetensors")
    refused(tmp_path / "files", r"files: a folder of files; give the path of one, such as .+sd\.safetensors")


def test_damaged_weights_are_named(folder: Path, tmp_path: Path) -> None:
    copy = altered(folder, tmp_path, {"unet.conv_out.bias": torch.full((4,), torch.nan)})
    with pytest.raises(CheckpointError, match=r"'conv_out\.bias' holds NaN or infinity"):
        load_model(copy, dtype="float16")
    for half in (False, True):
        with pytest.raises(CheckpointError, match=r"'conv_out\.bias' holds NaN or infinity"):
            convert_checkpoint(copy, tmp_path / "target", half=half)
    load_model(copy)
