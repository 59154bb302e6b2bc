"""The model as a whole, with random weights."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from PIL import Image
from refiners.foundationals.latent_diffusion.solvers import DPMSolver, Euler
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.model import StableDiffusion_XL
from safetensors.torch import load_file, save_file

from style_aligned.models.mini import Mini, MiniAutoencoder, MiniDoubleTextEncoder, MiniUNet, load_mini
from style_aligned.models.mini.model import DIGEST, digest, known_concepts, known_styles

VOCABULARY = ["a", "fox", "neon", "sign"]


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a file of weights as they are written for the package."""
    save_file(tensors, path, {**(metadata or {}), DIGEST: digest(tensors)})


@pytest.fixture(scope="module")
def mini() -> Mini:
    torch.manual_seed(0)
    return Mini(unet=MiniUNet(), lda=MiniAutoencoder(), clip_text_encoder=MiniDoubleTextEncoder(VOCABULARY))


@pytest.fixture
def folder(mini: Mini, tmp_path: Path) -> Path:
    """The weights of a random model, as the package carries its own."""
    parts = {"unet": mini.unet, "autoencoder": mini.lda, "text_encoder": mini.clip_text_encoder}
    metadata = {
        "vocabulary": json.dumps(VOCABULARY),
        "concepts": json.dumps(["fox"]),
        "styles": json.dumps(["neon sign"]),
    }
    for name, part in parts.items():
        tensors = {key: tensor.half().contiguous() for key, tensor in part.state_dict().items()}
        write(tmp_path / f"{name}.safetensors", tensors, metadata if name == "text_encoder" else None)
    return tmp_path


@torch.no_grad()
def sample(model: StableDiffusion_XL, steps: int = 2) -> torch.Tensor:
    model.set_inference_steps(steps)
    embedding, pooled = model.compute_clip_text_embedding("a fox, neon sign", "")
    x = model.init_latents((64, 64), noise=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)))
    for step in model.steps:
        x = model(
            x, step=step, clip_text_embedding=embedding, pooled_text_embedding=pooled, time_ids=model.default_time_ids
        )
    return x


def test_time_ids(mini: Mini) -> None:
    assert mini.default_time_ids.tolist() == [[256, 256, 0, 0, 256, 256]] * 2
    mini.classifier_free_guidance = False
    assert mini.default_time_ids.tolist() == [[256, 256, 0, 0, 256, 256]]
    mini.classifier_free_guidance = True


def test_latents_are_an_eighth(mini: Mini) -> None:
    assert mini.init_latents((256, 128)).shape == (1, 4, 32, 16)
    with torch.no_grad():
        assert mini.init_latents((64, 64), init_image=Image.new("RGB", (99, 50))).shape == (1, 4, 8, 8)


@pytest.mark.parametrize("solver", [None, Euler, DPMSolver])
def test_refiners_step_runs(mini: Mini, solver: type[Euler] | type[DPMSolver] | None) -> None:
    model = mini if solver is None else Mini(mini.unet, mini.lda, mini.clip_text_encoder, solver(num_inference_steps=4))
    x = sample(model, steps=4)
    assert x.shape == (1, 4, 8, 8)
    assert x.isfinite().all()
    with torch.no_grad():
        assert model.lda.latents_to_image(x).size == (64, 64)


def test_self_attention_guidance_of_the_model(mini: Mini) -> None:
    before = sample(mini)
    mini.set_self_attention_guidance(enable=True, scale=0.75)
    guided = sample(mini)
    mini.set_self_attention_guidance(enable=False)
    assert guided.isfinite().all()
    assert torch.equal(sample(mini), before)


def test_structural_copy(mini: Mini) -> None:
    copy = mini.structural_copy()
    assert isinstance(copy, Mini)
    assert torch.equal(sample(copy), sample(mini))


def test_loads_what_was_saved(mini: Mini, folder: Path) -> None:
    loaded = load_mini(folder=folder)
    assert isinstance(loaded, Mini)
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    # the files are float16
    assert torch.allclose(sample(loaded), sample(mini), rtol=0.05, atol=0.05)
    assert (known_concepts(folder), known_styles(folder)) == (["fox"], ["neon sign"])


def test_loads_in_another_dtype(folder: Path) -> None:
    model = load_mini(dtype=torch.bfloat16, folder=folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["unet", "autoencoder", "text_encoder"])
def test_refuses_broken_weights(folder: Path, name: str) -> None:
    path = folder / f"{name}.safetensors"
    whole = path.read_bytes()

    path.unlink()
    with pytest.raises(ValueError, match=f"{name}.safetensors is missing"):
        load_mini(folder=folder)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{name}.safetensors is not a whole safetensors file"):
        load_mini(folder=folder)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{name}.safetensors is not a whole safetensors file"):
        load_mini(folder=folder)

    path.write_bytes(whole)
    tensors = load_file(path)
    first = next(iter(tensors))
    metadata = {"vocabulary": json.dumps(VOCABULARY)}
    write(path, {key: tensor for key, tensor in tensors.items() if key != first}, metadata)
    with pytest.raises(ValueError, match=f"{name}.safetensors does not hold this model's weights"):
        load_mini(folder=folder)


@pytest.mark.parametrize("name", ["unet", "autoencoder", "text_encoder"])
def test_refuses_changed_weights(folder: Path, name: str) -> None:
    path = folder / f"{name}.safetensors"
    whole = path.read_bytes()
    middle = len(whole) // 2

    path.write_bytes(whole[:middle] + bytes(4096) + whole[middle + 4096 :])
    with pytest.raises(ValueError, match=rf"{name}.safetensors is corrupted: expected weights with the SHA-256 '\w+'"):
        load_mini(folder=folder)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{name}.safetensors is corrupted: expected weights with the SHA-256"):
        load_mini(folder=folder)
    path.write_bytes(whole)
    save_file(load_file(path), path, {"vocabulary": json.dumps(VOCABULARY)})
    with pytest.raises(ValueError, match=f"{name}.safetensors is corrupted, or not of this package: .* got none"):
        load_mini(folder=folder)
    path.write_bytes(whole)
    assert load_mini(folder=folder)


def test_digest_covers_names_kinds_shapes_and_bytes() -> None:
    tensors = {"a": torch.arange(6, dtype=torch.int16).reshape(2, 3), "b": torch.tensor(1.5), "c": torch.empty(0)}
    others = (
        {**tensors, "a": tensors["a"].T.contiguous().reshape(2, 3)},
        {**tensors, "a": tensors["a"].reshape(3, 2)},
        {**tensors, "a": tensors["a"].view(torch.float16)},
        {**tensors, "c": torch.empty(0, 1)},
        {"a": tensors["a"], "b": tensors["b"], "d": tensors["c"]},
        {"a": tensors["a"], "b": tensors["b"]},
    )
    digests = {digest(other) for other in (tensors, *others)}
    assert len(digests) == 1 + len(others)
    assert digest(dict(reversed(tensors.items()))) == digest(tensors)
    # written out: the SHA-256 of one name, kind and shape, and of its bytes
    expected = sha256(b'["a", "int16", [2]]' + b"\x01\x00\x02\x00").hexdigest()
    assert digest({"a": torch.tensor([1, 2], dtype=torch.int16)}) == expected
    every_second = torch.tensor([1, 0, 2, 0], dtype=torch.int16)[::2]
    assert digest({"a": every_second}) == expected


def test_refuses_a_text_encoder_without_vocabulary(folder: Path) -> None:
    path = folder / "text_encoder.safetensors"
    write(path, load_file(path))
    with pytest.raises(ValueError, match="names no vocabulary"):
        load_mini(folder=folder)
    with pytest.raises(ValueError, match="names no concepts"):
        known_concepts(folder)
    with pytest.raises(ValueError, match="is missing"):
        known_styles(folder / "elsewhere")
