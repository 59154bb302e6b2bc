"""After any exception in the middle of a pass, the next one is as on a fresh model."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.layers.chain import ChainError
from refiners.foundationals.latent_diffusion import SD1UNet
from refiners.foundationals.latent_diffusion.reference_only_control import ReferenceOnlyControlAdapter
from refiners.foundationals.latent_diffusion.solvers import DDIM
from refiners.foundationals.latent_diffusion.stable_diffusion_1.unet import MiddleBlock
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.control_lora import ControlLoraAdapter, ZeroConvolution
from torch import Tensor

from style_aligned import ReferenceBank, StyleAlignedAdapter
from style_aligned.adapter import reset_residuals
from style_aligned.models.mini import Mini
from tests.chains import meta_unet

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def run(model: Mini, images: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    model.solver = DDIM(num_inference_steps=4)
    embedding, pooled = model.compute_clip_text_embedding(["a fox"] * images, [""] * images)
    time_ids = model.default_time_ids.repeat_interleave(images, dim=0)
    x = torch.randn(images, 4, 8, 8, generator=generator)
    return model(x, step=0, clip_text_embedding=embedding, pooled_text_embedding=pooled, time_ids=time_ids)


@contextmanager
def stop_at(unet: fl.Chain, error: type[BaseException], layer: type[fl.Module], number: int) -> Generator[None]:
    """Raise an error once the pass gets to a layer."""

    def stop(*_: Any) -> None:
        raise error("stopped in the middle of a pass")

    handle = list(unet.layers(layer))[number].register_forward_pre_hook(stop)
    try:
        with pytest.raises((error, ChainError), match="stopped in the middle of a pass"):
            yield
    finally:
        handle.remove()


ERRORS = (KeyboardInterrupt, torch.OutOfMemoryError)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("number", [1, 3, -2])
@pytest.mark.parametrize("options", [{}, {"share_group_norm": True}, {"full_attention_share": True}], ids=str)
def test_a_plain_loop_goes_on(
    random_mini: Mini, error: type[BaseException], number: int, options: dict[str, Any]
) -> None:
    model = random_mini
    plain = run(model, 2)
    with StyleAlignedAdapter(model.unet, **options):
        expected, smaller = run(model, 3), run(model, 2)
        with stop_at(model.unet, error, fl.SelfAttention, number):
            run(model, 3)
        assert torch.equal(run(model, 2), smaller), "a smaller batch, once there is no memory left"
        assert torch.equal(run(model, 3), expected)
        with stop_at(model.unet, error, fl.SelfAttention, number):
            run(model, 3)
    assert torch.equal(run(model, 2), plain), "eject() resets too"


def test_record_and_replay_go_on(random_mini: Mini) -> None:
    model, bank = random_mini, ReferenceBank()
    with StyleAlignedAdapter(model.unet, share_group_norm=True) as adapter:
        with adapter.record(bank):
            run(model, 1)
        with adapter.replay(bank):
            expected = run(model, 2, seed=1)
        with stop_at(model.unet, KeyboardInterrupt, fl.SelfAttention, 3), adapter.record(bank):
            run(model, 1)
        with adapter.record(bank):
            run(model, 1)
        with stop_at(model.unet, KeyboardInterrupt, fl.SelfAttention, 3), adapter.replay(bank):
            run(model, 2)
        with adapter.replay(bank):
            assert torch.equal(run(model, 2, seed=1), expected)


def test_residuals_are_reset_without_the_adapter(random_mini: Mini) -> None:
    expected = run(random_mini, 2)
    with stop_at(random_mini.unet, KeyboardInterrupt, fl.SelfAttention, 3):
        run(random_mini, 2)
    reset_residuals(random_mini.unet)
    assert torch.equal(run(random_mini, 2), expected)
    reset_residuals(fl.Chain(fl.Identity()))  # nothing to reset


def test_a_pass_beside_reference_only_control() -> None:
    """Its guide passes with residuals of its own, before those of the U-Net."""
    unet = meta_unet(SD1UNet)
    assert isinstance(unet, SD1UNet)
    other = ReferenceOnlyControlAdapter(unet).inject()
    other.set_controlnet_condition(torch.randn(2, 4, 8, 8, device="meta"))
    unet.set_timestep(torch.zeros(1, device="meta"))
    unet.set_clip_text_embedding(torch.randn(2, 77, 768, device="meta"))

    def is_fresh() -> bool:
        return all(isinstance(residual, float) for residual in unet.use_context("unet")["residuals"])

    with StyleAlignedAdapter(unet) as ours, ours.record(ReferenceBank()):
        for number, is_left in ((0, False), (-1, True)):  # of the guide, of the U-Net
            with stop_at(unet, KeyboardInterrupt, MiddleBlock, number):
                unet(torch.randn(2, 4, 8, 8, device="meta"))
            assert is_fresh() != is_left
            with pytest.raises(ValueError, match="got a batch of 4 rows"):
                unet(torch.randn(4, 4, 8, 8, device="meta"))
            assert is_fresh()
    other.eject()


def test_a_pass_that_is_refused_leaves_residuals_of_a_caller(random_mini: Mini) -> None:
    model, unet = random_mini, random_mini.unet
    with StyleAlignedAdapter(unet, set_size=2):
        unset = run(model, 2)
        unet.set_context("unet", {"residuals": residuals(1, 2)})
        controlled = run(model, 2)
        unet.set_context("unet", {"residuals": residuals(1, 2)})
        with pytest.raises(ValueError, match="got a batch of 3 rows"):
            unet(torch.randn(3, 4, 8, 8))
        assert torch.equal(run(model, 2), controlled)
        assert torch.equal(run(model, 2), unset)


def residuals(seed: int, images: int) -> list[Tensor | float]:
    """What somebody's own ControlNet gives the two deepest levels, for both guidance halves."""
    torch.manual_seed(seed)
    return [*[0.0] * 7, *(torch.randn(2 * images, channels, 2, 2) for channels in (48, 48)), 0.0]


@pytest.mark.parametrize("options", [{"strength": 0.0}, {}, {"share_group_norm": True}], ids=str)
def test_residuals_of_a_caller_stay(random_mini: Mini, options: dict[str, Any]) -> None:
    model, unet = random_mini, random_mini.unet

    def run_with(seed: int, images: int = 2) -> Tensor:
        unet.set_context("unet", {"residuals": residuals(seed, images)})
        return run(model, images)

    unset, plain = run(model, 2), run_with(seed=1)
    assert not torch.allclose(plain, unset, rtol=1e-2)
    unet.set_context("unet", {"residuals": residuals(1, 2)})
    with StyleAlignedAdapter(model.unet, **options):
        controlled = run(model, 2)  # set before inject()
        assert torch.equal(controlled, plain) == (options == {"strength": 0.0})
        assert torch.equal(run_with(seed=1), controlled)
        aligned, other = run(model, 2), run_with(seed=2)  # a pass uses them up
        assert not torch.allclose(aligned, controlled, rtol=1e-2)
        for error in ERRORS:
            with stop_at(unet, error, fl.SelfAttention, 3):
                run_with(seed=2, images=3)
            assert torch.equal(run(model, 2), aligned), "those of the interrupted pass are forgotten"
            with stop_at(unet, error, fl.SelfAttention, 3):
                run_with(seed=2, images=3)
            assert torch.equal(run_with(seed=1), controlled), "those that were set since are not"
        assert torch.equal(run_with(seed=2), other)
        unet.set_context("unet", {"residuals": residuals(1, 2)})
    assert torch.equal(run(model, 2), plain), "nor by eject()"


@pytest.mark.parametrize("ours_first", [True, False])
def test_the_residuals_of_a_control_lora_stay(fresh_mini: Mini, ours_first: bool) -> None:
    model = fresh_mini
    ours = StyleAlignedAdapter(model.unet)
    control = ControlLoraAdapter("canny", model.unet, scale=1.0)  # copies the down blocks
    if ours_first:
        ours.inject()
    for layer in control.control_lora.layers(ZeroConvolution):
        torch.nn.init.normal_(layer.layer(0, fl.Conv2d).weight, std=0.02)
    control.inject()
    if not ours_first:
        ours.inject()
    control.set_condition(torch.randn(1, 3, 64, 64))
    controlled = run(model, 2)
    with stop_at(model.unet, KeyboardInterrupt, fl.SelfAttention, -2):
        run(model, 2)
    assert torch.equal(run(model, 2), controlled)
    control.control_lora.scale = 0
    assert not torch.allclose(run(model, 2), controlled)
