"""What an exception, another thread or another adapter leaves in a model does not reach the next images."""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.layers.chain import ChainError
from refiners.foundationals.clip.image_encoder import CLIPImageEncoderH
from refiners.foundationals.latent_diffusion.image_prompt import ImageProjection
from refiners.foundationals.latent_diffusion.stable_diffusion_xl import SDXLIPAdapter
from torch import Tensor

from style_aligned import Style, generate
from style_aligned.models.mini import Mini
from style_aligned.models.state import root_cause
from tests.oracle import relative_error

PROMPTS = ["a cat, ink", "a dog, ink"]


def make_style(model: Mini) -> Style:
    return Style.from_prompt(model, "a fox, ink", num_inference_steps=2, size=(64, 64))


def draw(model: Mini, style: Style, **arguments: Any) -> Tensor:
    return torch.cat([sample.latents for sample in generate(model, style, PROMPTS, **arguments)])


@contextmanager
def stop(layers: Iterator[fl.Module], kind: Callable[[str], BaseException], at: int) -> Generator[None, None, None]:
    """Raise an exception before the nth call of some layers, once."""
    calls = 0

    def hook(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise kind("stopped in the middle of a pass")

    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("at", [1, 2, 9, 20, 31])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_after_an_exception_a_model_draws_as_before(model: Mini, kind: Any, at: int) -> None:
    style = make_style(model).complete()
    expected = draw(model, style)
    with stop(model.unet.layers(fl.Conv2d), kind, at), pytest.raises(kind, match=r"^stopped in the middle of a pass$"):
        draw(model, style)
    assert torch.equal(draw(model, style), expected)
    with stop(model.unet.layers(fl.SelfAttention), kind, 3), pytest.raises(kind, match=r"^stopped"):
        make_style(model).complete()
    assert torch.equal(make_style(model).complete().latents, style.latents)


def test_after_an_exception_in_the_text_encoder(model: Mini) -> None:
    style = make_style(model).complete()
    expected = draw(model, style)
    linears = list(model.clip_text_encoder.layers(fl.Linear))
    with stop(iter(linears), KeyboardInterrupt, len(linears)), pytest.raises(KeyboardInterrupt):
        draw(model, style)
    assert torch.equal(draw(model, style), expected)


def test_after_an_exception_in_a_loop_of_the_user(model: Mini) -> None:
    style = make_style(model).complete()
    expected = draw(model, style, aligned=False)
    text, pooled = model.compute_clip_text_embedding("a cat")
    context = {"clip_text_embedding": text, "pooled_text_embedding": pooled, "time_ids": model.default_time_ids}
    with stop(model.unet.layers(fl.SelfAttention), KeyboardInterrupt, 2), pytest.raises(KeyboardInterrupt):
        model(torch.zeros(1, 4, 8, 8), step=0, **context)
    assert torch.equal(draw(model, style, aligned=False), expected)


def out_of_mps_memory(text: str) -> RuntimeError:
    return RuntimeError(f"MPS backend out of memory: {text}")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError, MemoryError, out_of_mps_memory],
    ids=["cuda", "python", "mps"],
)
def test_out_of_memory_halves_the_batch(model: Mini, error: Any) -> None:
    style = make_style(model).complete()
    prompts = [*PROMPTS, "a rocket"]
    expected = [sample.latents for sample in generate(model, style, prompts, batch_size=1)]
    rows: list[int] = []

    def write_down(_: Any, arguments: Any, output: Any) -> None:
        rows.append(len(arguments[0]))

    handle = model.unet.register_forward_hook(write_down)
    # the reference goes through all of them once, then the first batch gets half of the way
    at = sum(1 for _ in model.unet.layers(fl.SelfAttention)) * 3 // 2
    with (
        stop(model.unet.layers(fl.SelfAttention), error, at),
        pytest.warns(UserWarning, match="not enough memory for 3 images at a time: going on with batches of 2"),
    ):
        samples = list(generate(model, style, prompts, batch_size=4))
    handle.remove()
    assert rows == [2, 4, 2, 2, 4, 2]
    for sample, latents in zip(samples, expected, strict=True):
        assert relative_error(sample.latents, latents) < 1e-4


def test_out_of_memory_with_a_single_image(model: Mini) -> None:
    style = make_style(model)
    with (
        stop(model.unet.layers(fl.SelfAttention), torch.OutOfMemoryError, 2),
        pytest.raises(torch.OutOfMemoryError, match="stopped"),
    ):
        draw(model, style, batch_size=1)
    draw(model, style, batch_size=1)


def test_errors_of_layers_are_theirs(model: Mini) -> None:
    style = make_style(model)

    def give_one_channel(*_: Any) -> tuple[Tensor]:
        return (torch.zeros(1, 1, 8, 8),)

    handle = model.unet.ensure_find(fl.Conv2d).register_forward_pre_hook(give_one_channel)
    try:
        with pytest.raises(RuntimeError) as caught:
            draw(model, style)
    finally:
        handle.remove()
    assert not isinstance(caught.value, ChainError)
    assert len(str(caught.value)) < 200
    assert root_cause(caught.value) is caught.value


def test_threads_wait_for_each_other(model: Mini) -> None:
    expected = {seed: draw(model, make_style(model), seeds=[seed, seed + 1]) for seed in (1, 5)}
    results: dict[int, Tensor | BaseException] = {}
    barrier = threading.Barrier(len(expected))

    def work(seed: int) -> None:
        try:
            barrier.wait()
            results[seed] = draw(model, make_style(model), seeds=[seed, seed + 1], chunk_size=1)
        except BaseException as error:
            results[seed] = error

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, latents in expected.items():
        result = results[seed]
        assert isinstance(result, Tensor), result
        assert relative_error(result, latents) < 1e-4


def test_a_thread_does_not_wait_while_images_are_handed_out(model: Mini) -> None:
    style = make_style(model).complete()
    first = iter(generate(model, style, PROMPTS))
    next(first)
    thread = threading.Thread(target=draw, args=(model, style))
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    next(first)


@pytest.fixture
def ip_adapter(fresh_mini: Mini) -> SDXLIPAdapter:
    torch.manual_seed(0)
    projection = ImageProjection(clip_image_embedding_dim=8, clip_text_embedding_dim=128)
    encoder = CLIPImageEncoderH(device="meta")
    adapter = SDXLIPAdapter(fresh_mini.unet, clip_image_encoder=encoder, image_proj=projection)
    for parameter in adapter.parameters():
        parameter.requires_grad_(False)
    return adapter.inject()


@pytest.mark.parametrize("rows", [1, 2])
def test_an_image_prompt_is_for_all_images(fresh_mini: Mini, ip_adapter: SDXLIPAdapter, rows: int) -> None:
    embedding = torch.randn(rows, 4, 128, generator=torch.Generator().manual_seed(1))
    ip_adapter.set_clip_image_embedding(embedding)
    style = make_style(fresh_mini).complete()
    expected = draw(fresh_mini, style, batch_size=1)
    assert relative_error(draw(fresh_mini, style, batch_size=4), expected) < 1e-4
    context = fresh_mini.unet.use_context("ip_adapter")
    assert context["clip_image_embedding"] is embedding, "it is as it was"
    ip_adapter.set_clip_image_embedding(2 * embedding)
    assert relative_error(draw(fresh_mini, style), expected) > 1e-3


def test_an_image_prompt_without_guidance_is_that_of_the_image(fresh_mini: Mini, ip_adapter: SDXLIPAdapter) -> None:
    embedding = torch.randn(2, 4, 128, generator=torch.Generator().manual_seed(1))
    style = Style.from_prompt(fresh_mini, "a fox", num_inference_steps=1, size=(64, 64), condition_scale=1)
    results: list[Tensor] = []
    for rows in (embedding, embedding[1:]):
        ip_adapter.set_clip_image_embedding(rows)
        results.append(draw(fresh_mini, style))
    assert torch.equal(*results)


def test_an_image_prompt_of_other_rows_is_refused(fresh_mini: Mini, ip_adapter: SDXLIPAdapter) -> None:
    ip_adapter.set_clip_image_embedding(torch.zeros(3, 4, 128))
    with pytest.raises(ValueError, match=r"^expected the image embedding of the IP-Adapter to have 1 row, or 2 for"):
        draw(fresh_mini, make_style(fresh_mini))
