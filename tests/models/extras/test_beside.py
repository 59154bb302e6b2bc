"""Several adapters at once: the right order in and out, and nothing left behind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from refiners.fluxion.adapters.lora import Lora
from safetensors.torch import save_file

from style_aligned import Style, generate
from style_aligned.files import digest_picture
from style_aligned.models.checkpoints import load_model
from style_aligned.models.extras import Extras, FileLora
from style_aligned.models.model import describe_model
from tests.models.extras.test_ip_adapter import encoder_folder, random_ip_adapter
from tests.models.extras.test_lora import kohya, random_lora, unet_only

__all__ = ["encoder_folder"]


@pytest.mark.parametrize("kind", ["1"], indirect=True)
def test_all_at_once(kind: str, folder: Path, pipeline: Any, encoder_folder: Path, tmp_path: Path) -> None:
    changes = unet_only(random_lora(pipeline))
    for name in ("ink", "neon"):
        save_file({key: t.contiguous() for key, t in kohya(changes, kind).items()}, tmp_path / f"{name}.safetensors")
    save_file(random_ip_adapter(pipeline.unet, plus=False), tmp_path / "ip.safetensors")
    model = load_model(folder)

    def draw() -> torch.Tensor:
        style = Style.from_prompt(model, "a fox", seed=1, num_inference_steps=2, size=(64, 64))
        return torch.cat([image.latents for image in generate(model, style, ["a cat", "a dog"])])

    tree, plain = repr(model.unet), draw()
    image = Image.new("RGB", (56, 56), "red")
    loras = [(tmp_path / "ink.safetensors", 0.3), (tmp_path / "neon.safetensors", 0.2)]
    prompt: dict[str, Any] = {"ip_adapter": tmp_path / "ip.safetensors", "image_encoder": encoder_folder}
    extras = Extras(model, loras=loras)
    assert repr(model.unet) == tree
    with extras, FileLora(model, tmp_path / "ink.safetensors", scale=0.1, name="more"):
        three = draw()
        assert {lora.name for lora in model.unet.layers(Lora)} == {"ink", "neon", "more"}
    with Extras(model, loras=[(tmp_path / "ink.safetensors", 0.6)]):
        assert torch.allclose(draw(), three, atol=1e-3)
    assert not torch.allclose(three, plain, atol=1e-2)

    with_image = Extras(model, loras=loras, **prompt, image_prompt=image, image_prompt_scale=0.5)
    assert with_image.describe() == [
        {"kind": "lora", "file": "ink.safetensors", "scale": 0.3},
        {"kind": "lora", "file": "neon.safetensors", "scale": 0.2},
        {"kind": "ip_adapter", "file": "ip.safetensors", "scale": 0.5, "picture": digest_picture(image)},
    ]
    assert with_image.ip_adapter is not None
    with_image.ip_adapter.preprocess_image = lambda image, size=(56, 56), **_: torch.zeros(1, 3, 56, 56)  # pyright: ignore
    with with_image:
        together = draw()
        assert describe_model(model)["adapters"] == with_image.describe()
        with pytest.raises(ValueError, match="expected extras that are not injected, but they are"):
            with_image.inject()
        with pytest.raises(ValueError, match="expected LoRAs to be injected before other adapters"):
            FileLora(model, tmp_path / "ink.safetensors", name="late")
    assert not torch.allclose(together, three, atol=1e-2)
    assert repr(model.unet) == tree
    assert torch.equal(draw(), plain)
    assert "adapters" not in describe_model(model)

    with pytest.raises(ValueError, match="expected each LoRA once, got 'ink' twice"):
        Extras(model, loras=[loras[0], loras[0]])
    with pytest.raises(
        ValueError, match="expected image_prompt too: an image prompt takes ip_adapter, image_encoder, im"
    ):
        Extras(model, **prompt)
