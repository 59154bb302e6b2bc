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
from style_aligned.models.denoising import time_ids
from style_aligned.models.extras import Extras, FileLora, load_ip_adapter
from style_aligned.models.model import describe_model
from tests.models.checkpoints.pipelines import quiet
from tests.models.checkpoints.test_parts import error, random
from tests.models.extras.test_ip_adapter import FEATURES, encoder_folder, random_ip_adapter
from tests.models.extras.test_lora import dotted, kohya, random_lora, unet_only

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


@pytest.mark.parametrize("kind", ["xl", "1"], indirect=True)
@torch.no_grad()
def test_loras_count_beside_an_image_prompt(
    kind: str, folder: Path, pipeline: Any, encoder_folder: Path, tmp_path: Path
) -> None:
    """In the cross-attentions too, in whatever order they go in and out.

    In float64: what rounding alone makes in float32 depends on the number of threads, and exceeds 1e-4.
    """
    cross = {layer: change for layer, change in random_lora(pipeline).items() if ".attn2." in layer}
    save_file({key: t.contiguous() for key, t in kohya(cross, kind).items()}, tmp_path / "ink.safetensors")
    state = random_ip_adapter(pipeline.unet, plus=False)
    save_file(state, tmp_path / "ip.safetensors")
    model = load_model(folder).to(dtype=torch.float64)
    features = random(2, FEATURES, seed=9).double()
    x, text = random(2, 4, 8, 16).double(), random(2, 77, pipeline.unet.config.cross_attention_dim, seed=8).double()
    pooled, ids, timestep = random(2, 64, seed=10).double(), time_ids((64, 128)), torch.tensor([481])

    with quiet():
        processors = pipeline.unet.attn_processors
        pipeline.load_lora_weights(dotted(cross, "lora_A", "lora_B"), adapter_name="ink")
        parts = {
            part: {key.removeprefix(f"{part}."): t for key, t in state.items() if key.startswith(f"{part}.")}
            for part in ("image_proj", "ip_adapter")
        }
        pipeline.unet._load_ip_adapter_weights([parts], low_cpu_mem_usage=False)
        try:
            pipeline.set_adapters("ink", 0.7)
            pipeline.unet.double()
            added = {"image_embeds": [features[:, None]], "text_embeds": pooled, "time_ids": ids.double()}
            expected = pipeline.unet(x, timestep, encoder_hidden_states=text, added_cond_kwargs=added).sample
        finally:
            pipeline.unet.encoder_hid_proj, pipeline.unet.config.encoder_hid_dim_type = None, None
            pipeline.unet.set_attn_processor(processors)
            pipeline.unload_lora_weights()
            pipeline.unet.float()

    def predict() -> torch.Tensor:
        more = {"pooled_text_embedding": pooled, "time_ids": ids} if kind == "xl" else {}
        model.set_unet_context(timestep=timestep, clip_text_embedding=text, **more)
        return model.unet(x)

    tree, plain = repr(model.unet), predict()
    lora, adapter = (
        FileLora(model, tmp_path / "ink.safetensors", scale=0.7),
        load_ip_adapter(model, tmp_path / "ip.safetensors", image_encoder=encoder_folder),
    )
    adapter.image_proj.to(dtype=torch.float64)
    adapter.inject()
    adapter.set_clip_image_embedding(adapter.image_proj(features))
    without = predict()
    assert error(without, expected) > 0.01
    lora.inject()
    both = predict()
    assert error(both, expected) < 1e-9
    described = describe_model(model)
    adapter.eject()
    lora_alone = predict()
    assert error(lora_alone, both) > 0.01
    adapter.inject()
    adapter.set_clip_image_embedding(adapter.image_proj(features))
    assert torch.equal(predict(), both)
    assert describe_model(model) == described
    lora.scale = 0.0
    assert error(predict(), without) < 1e-6
    lora.eject()
    assert torch.equal(predict(), without)
    adapter.eject()
    assert torch.equal(predict(), plain)
    assert repr(model.unet) == tree
