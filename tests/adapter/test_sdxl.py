"""The full-size U-Net of SDXL, with random weights."""

from collections.abc import Iterator

import pytest
import torch
from refiners.foundationals.latent_diffusion import SDXLUNet
from refiners.foundationals.latent_diffusion.style_aligned import StyleAlignedAdapter as RefinersStyleAlignedAdapter
from torch import Tensor

from style_aligned import ReferenceBank, StyleAlignedAdapter
from tests.chains import snapshot
from tests.oracle import relative_error

pytestmark = [pytest.mark.slow, pytest.mark.full_size]


@pytest.fixture(scope="module")
def unet() -> Iterator[SDXLUNet]:
    with torch.no_grad():
        unet = SDXLUNet(in_channels=4, device="meta", dtype=torch.bfloat16)
        unet.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(0)
        for name, parameter in unet.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0 if name.endswith("bias") else 1)
            else:
                noise = torch.randn(1 << 16, generator=generator, dtype=torch.float32) / parameter[0].numel() ** 0.5
                repeats = -(-parameter.numel() // len(noise))
                parameter.copy_(noise.repeat(repeats)[: parameter.numel()].reshape(parameter.shape))
        yield unet


def run(unet: SDXLUNet, x: Tensor, rows: list[int] | None = None) -> Tensor:
    """Predict the noise in both guidance halves, with prompts that depend on the row in a batch of 6 alone."""
    generator = torch.Generator().manual_seed(1)
    rows = list(range(6)) if rows is None else rows
    text = torch.randn(6, 77, 2048, generator=generator, dtype=torch.float32).to(torch.bfloat16)[rows]
    pooled = torch.randn(6, 1280, generator=generator, dtype=torch.float32).to(torch.bfloat16)[rows]
    unet.set_timestep(torch.tensor([601]))
    unet.set_clip_text_embedding(text)
    unet.set_pooled_text_embedding(pooled)
    unet.set_time_ids(torch.tensor([[256, 256, 0, 0, 256, 256]]).repeat(len(rows), 1))
    with torch.no_grad():
        return unet(x[rows])


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16).repeat(2, 1, 1, 1)


def test_the_full_size_unet(unet: SDXLUNet, x: Tensor) -> None:
    plain = run(unet, x)
    assert plain.isfinite().all()
    before = snapshot(unet)
    adapter = StyleAlignedAdapter(unet).inject()
    aligned = run(unet, x)
    assert aligned.isfinite().all()
    for reference in (0, 3):
        assert torch.equal(aligned[reference], plain[reference])
    effect = relative_error(aligned[[1, 2, 4, 5]], plain[[1, 2, 4, 5]])
    assert effect > 0.2

    bank = ReferenceBank()
    with adapter.record(bank):
        run(unet, x, [0, 3])
    assert len(bank) == 4 * 70, "keys, values and the moments of queries and keys at each self-attention"
    for target in (1, 2):
        with adapter.replay(bank):
            replayed = run(unet, x, [target, target + 3])
        # bfloat16 rounds 70 attentions and what lies between: next to nothing beside what alignment does
        assert relative_error(replayed, aligned[[target, target + 3]]) < effect / 10

    adapter.eject()
    builtin = RefinersStyleAlignedAdapter(unet).inject()
    assert relative_error(run(unet, x), aligned) < effect / 10
    builtin.eject()
    assert torch.equal(run(unet, x), plain)
    assert [line[:2] for line in snapshot(unet)] == [line[:2] for line in before]


def test_shift_and_scale_on_the_full_size_unet(unet: SDXLUNet, x: Tensor) -> None:
    with StyleAlignedAdapter(unet, only_self_level=0.5) as adapter:
        aligned = run(unet, x)
        adapter.scale, adapter.shift = 1.3, 0.7
        assert relative_error(run(unet, x)[1:3], aligned[1:3]) > 1e-2
