"""What the adapter refuses, and that nothing has changed then."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.layers.chain import ChainError
from refiners.foundationals.latent_diffusion import SD1UNet, SDXLUNet
from refiners.foundationals.latent_diffusion.reference_only_control import ReferenceOnlyControlAdapter
from refiners.foundationals.latent_diffusion.style_aligned import StyleAlignedAdapter as RefinersStyleAlignedAdapter
from torch import Tensor

from style_aligned import ReferenceBank, StyleAligned, StyleAlignedAdapter
from style_aligned.adapter.group_norm import GroupNorm
from tests.chains import blocks, features, meta_unet, run, snapshot


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_eject_before_inject() -> None:
    chain = blocks()
    before = snapshot(chain)
    with pytest.raises(ValueError, match=r"not injected: expected inject\(\) before eject\(\)"):
        StyleAlignedAdapter(chain).eject()
    assert snapshot(chain) == before


def test_inject_twice() -> None:
    chain = blocks()
    adapter = StyleAlignedAdapter(chain).inject()
    injected = snapshot(chain)
    with pytest.raises(ValueError, match=r"injected already: expected eject\(\) before inject\(\)"):
        adapter.inject()
    assert snapshot(chain) == injected


def test_an_adapter_that_leaves_every_layer_alone() -> None:
    chain, x = blocks(), features(6, 10, 16)
    before = run(chain, x)
    adapter = StyleAlignedAdapter(chain, only_self_level=1.0).inject()
    assert torch.equal(run(chain, x), before)
    with pytest.raises(ValueError, match="injected already"):
        adapter.inject()
    adapter.eject()
    with pytest.raises(ValueError, match="not injected"):
        adapter.eject()


@pytest.mark.parametrize("options", [{}, {"full_attention_share": True}, {"share_attention": False}], ids=str)
def test_a_target_that_another_adapter_shares(options: dict[str, Any]) -> None:
    chain = blocks()
    late = StyleAlignedAdapter(chain)
    StyleAlignedAdapter(chain, **options).inject()
    injected = snapshot(chain)
    with pytest.raises(ValueError, match="expected a target that no StyleAlignedAdapter is injected in"):
        StyleAlignedAdapter(chain)
    with pytest.raises(ValueError, match="expected a target that no StyleAlignedAdapter is injected in"):
        late.inject()
    assert snapshot(chain) == injected


def test_a_target_in_an_adapter_without_layers() -> None:
    chain = blocks()
    late = StyleAlignedAdapter(chain)
    StyleAlignedAdapter(chain, only_self_level=1.0).inject()
    with pytest.raises(ValueError, match="with a StyleAlignedAdapter already: eject the other adapter first"):
        late.inject()


def test_a_parent_without_the_target() -> None:
    chain = blocks()
    before = snapshot(chain)
    adapter = StyleAlignedAdapter(chain)
    with pytest.raises(ValueError, match="expected a parent that holds the Blocks, got a Chain that does not"):
        adapter.inject(fl.Chain(fl.Identity()))
    assert snapshot(chain) == before
    parent = fl.Chain(chain)
    adapter.inject()
    assert parent[0] is adapter
    adapter.eject()
    assert parent[0] is chain


def test_a_target_that_the_builtin_adapter_shares() -> None:
    chain = blocks()
    builtin = RefinersStyleAlignedAdapter(chain).inject()  # pyright: ignore
    with pytest.raises(ValueError, match="eject the other adapter first"):
        StyleAlignedAdapter(chain)
    builtin.eject()
    StyleAlignedAdapter(chain).inject()


@pytest.mark.parametrize(
    "options", [{}, {"full_attention_share": True}, {"share_group_norm": True, "layers": ["layer"]}], ids=str
)
def test_a_copy_while_injected(options: dict[str, Any]) -> None:
    """As Refiners' own adapters: a copy would be plain, or lack what the layers go by."""
    chain = blocks()
    message = (
        "^expected a model without StyleAligned to copy, got one that a StyleAlignedAdapter is injected in: eject"
        r"\(\) it first, and inject\(\) it again after the copy$"
    )
    with StyleAlignedAdapter(chain, **options) as adapter:
        for copied in (chain, chain.layer("Residual_1", fl.Chain), adapter):
            with pytest.raises(RuntimeError, match=message):
                copied.structural_copy()
    assert chain.structural_copy().find(StyleAligned) is None
    norm = fl.Chain(fl.GroupNorm(channels=8, num_groups=2))
    with StyleAlignedAdapter(norm, share_group_norm=True), pytest.raises(RuntimeError, match=message):
        norm.structural_copy()
    assert norm.structural_copy()[0] is norm[0]


def test_reference_only_control_that_comes_later() -> None:
    unet = meta_unet(SD1UNet)
    assert isinstance(unet, SD1UNet)
    theirs = ReferenceOnlyControlAdapter(unet)
    ours = StyleAlignedAdapter(unet, set_size=2).inject()
    with pytest.raises(RuntimeError, match="expected a model without StyleAligned to copy"):
        ReferenceOnlyControlAdapter(unet)
    theirs.inject()  # it was made before
    message = "^expected reference-only control to be injected before StyleAligned, got it after: eject both$"
    with pytest.raises(ValueError, match=message):
        unet(torch.randn(2, 4, 8, 8))
    theirs.eject()
    ours.eject()
    assert unet.parent is None


def test_a_batch_beside_reference_only_control() -> None:
    unet = meta_unet(SD1UNet)
    assert isinstance(unet, SD1UNet)
    theirs = ReferenceOnlyControlAdapter(unet).inject()
    message = (
        "^expected single images beside reference-only control, each in a pass of its own within {}, got a batch of {}$"
    )
    within = r"record\(\) or replay\(\)"
    with StyleAlignedAdapter(unet, set_size=2) as ours:
        with pytest.raises(ValueError, match=message.format(within, "2 rows without them")):
            unet(torch.randn(2, 4, 8, 8))
        with ours.record(ReferenceBank()), pytest.raises(ValueError, match=message.format(within, "4 rows")):
            unet(torch.randn(4, 4, 8, 8))
    theirs.eject()
    assert unet.parent is None


def test_a_target_without_self_attention() -> None:
    with pytest.raises(ValueError, match="at least one self-attention, got a Chain with none"):
        StyleAlignedAdapter(fl.Chain(fl.Linear(4, 4), fl.Attention(embedding_dim=4)))
    with pytest.raises(ValueError, match="at least one self-attention or group normalization, got a Chain with none"):
        StyleAlignedAdapter(fl.Chain(fl.Linear(4, 4)), share_group_norm=True)


def test_a_causal_self_attention() -> None:
    with pytest.raises(ValueError, match=r"that is not causal, got .*SelfAttention"):
        StyleAlignedAdapter(fl.Chain(fl.SelfAttention(embedding_dim=4, is_causal=True)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -0.1}, "expected scale to be a finite number of at least 0, got -0.1"),
        ({"scale": float("nan")}, "expected scale to be a finite number of at least 0, got nan"),
        ({"scale": float("inf")}, "expected scale to be a finite number of at least 0, got inf"),
        ({"shift": float("-inf")}, "expected shift to be a finite number, got -inf"),
        ({"only_self_level": 1.5}, "expected only_self_level to be a finite number between 0 and 1, got 1.5"),
        ({"only_self_level": -0.5}, "expected only_self_level to be a finite number between 0 and 1, got -0.5"),
        ({"set_size": 0}, "expected set_size to be an integer of at least 1, got 0"),
        ({"strength": -0.5}, "expected strength to be a finite number of at least 0, got -0.5"),
        ({"full_attention_share": True, "strength": 2.0}, "full_attention_share .* got it with strength"),
        ({"full_attention_share": True, "scale": 2.0}, "full_attention_share .* got it with scale"),
        ({"full_attention_share": True, "shift": 1.0}, "full_attention_share .* got it with shift"),
        ({"full_attention_share": True, "adain_values": True}, "full_attention_share .* got it with adain_values"),
        ({"full_attention_share": True, "share_attention": False}, "got it with share_attention"),
    ],
    ids=str,
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StyleAlignedAdapter(blocks(), **options)
    for name in ("scale", "shift", "strength", "set_size"):
        if name in options:
            adapter = StyleAlignedAdapter(blocks(), full_attention_share=options.get("full_attention_share", False))
            before = getattr(adapter, name)
            with pytest.raises(ValueError, match=message):
                setattr(adapter, name, options[name])
            assert getattr(adapter, name) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "2"}, "expected scale to be a number, got '2'"),
        ({"strength": True}, "expected strength to be a number, got True"),
        ({"set_size": 2.0}, "expected set_size to be an integer or None, got 2.0"),
        ({"adain_keys": 1}, "expected adain_keys to be True or False, got 1"),
    ],
)
def test_options_of_a_wrong_type(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        StyleAlignedAdapter(blocks(), **options)


def test_an_option_that_does_not_exist() -> None:
    options: dict[str, Any] = {"strenght": 2}
    with pytest.raises(ValueError, match=r"expected options among strength, .*, got strenght: did you mean strength\?"):
        StyleAlignedAdapter(blocks(), **options)


@pytest.mark.parametrize(
    ("rows", "set_size", "message"),
    [
        (5, None, "got a batch of 5 rows, expected the two guidance halves of one set"),
        (5, 3, "got a batch of 5 rows, expected a multiple of set_size=3"),
    ],
)
def test_rows_that_do_not_divide(rows: int, set_size: int | None, message: str) -> None:
    chain = blocks()
    adapter = StyleAlignedAdapter(chain, set_size=set_size).inject()
    with pytest.raises(ChainError, match=message):
        run(chain, features(rows, 10, 16))
    adapter.eject()
    before = run(blocks(), features(4, 10, 16))
    assert torch.equal(run(chain, features(4, 10, 16)), before)


class TestInputOfAUNet:
    """What a U-Net is given is checked before anything is computed: a U-Net on the meta device can be asked."""

    def ask(self, latents: Tensor, set_size: int | None = None, **options: Any) -> None:
        unet = meta_unet(SDXLUNet)
        before = snapshot(unet)
        adapter = StyleAlignedAdapter(unet, set_size=set_size, **options).inject()
        injected = snapshot(unet)
        try:
            unet(latents)
        finally:
            assert snapshot(unet) == injected
            adapter.eject()
            assert snapshot(unet) == before

    def test_halves_that_differ(self) -> None:
        with pytest.raises(ValueError, match="got a batch of 4 rows whose halves differ, expected the same latents"):
            self.ask(torch.randn(4, 4, 8, 8))

    def test_halves_that_are_equal(self) -> None:
        with pytest.raises(ChainError, match="context entry diffusion"):  # on to the U-Net, that lacks its contexts
            self.ask(torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1))

    def test_halves_that_differ_with_a_set_size(self) -> None:
        with pytest.raises(ChainError, match="context entry diffusion"):
            self.ask(torch.randn(4, 4, 8, 8), set_size=4)

    def test_a_set_size_of_both_halves(self) -> None:
        halves = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1)
        with pytest.raises(ValueError, match=r"whose halves are equal, .* a set_size of 4: expected 2"):
            self.ask(halves, set_size=4)
        with pytest.raises(ChainError, match="context entry diffusion"):
            self.ask(halves[:1].expand(4, -1, -1, -1), set_size=4)  # one noise for all, without guidance

    def test_a_unet_in_a_chain(self) -> None:
        unet = meta_unet(SDXLUNet)
        chain = fl.Chain(unet)
        adapter = StyleAlignedAdapter(chain).inject()
        with pytest.raises(ChainError, match="got a batch of 4 rows whose halves differ"):
            chain(torch.randn(4, 4, 8, 8))
        adapter.eject()
        assert isinstance(unet[0], fl.Passthrough)

    def test_odd_rows(self) -> None:
        with pytest.raises(ValueError, match="got a batch of 3 rows, expected the two guidance halves"):
            self.ask(torch.randn(3, 4, 8, 8))

    def test_rows_that_do_not_divide(self) -> None:
        with pytest.raises(ValueError, match="got a batch of 6 rows, expected a multiple of set_size=4"):
            self.ask(torch.randn(6, 4, 8, 8), set_size=4, full_attention_share=True)

    def test_a_wrong_rank(self) -> None:
        with pytest.raises(ValueError, match=r"expected latents of rank 4 .* got a tensor of rank 3"):
            self.ask(torch.randn(2, 4, 8))

    def test_latents_are_looked_at_once(self) -> None:
        """Not in every pass: it makes a GPU wait."""
        unet, halves = meta_unet(SDXLUNet), torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1)
        adapter = StyleAlignedAdapter(unet).inject()
        differing, three = torch.randn(4, 4, 8, 8), torch.randn(6, 4, 8, 8)
        on_to_the_unet = pytest.raises(ChainError, match="context entry diffusion")
        with on_to_the_unet:
            unet(halves)
        with on_to_the_unet:
            unet(differing)
        with pytest.raises(ValueError, match="halves differ"):
            unet(three)  # of another number of rows
        adapter.set_size = None
        with pytest.raises(ValueError, match="halves differ"):
            unet(differing)


def test_options_that_decide_on_layers_are_fixed_while_injected() -> None:
    adapter = StyleAlignedAdapter(blocks())
    adapter.share_group_norm = True
    with adapter:
        assert adapter.target.find(GroupNorm) is not None
        with pytest.raises(ValueError, match=r"expected share_group_norm to be set before inject\(\)"):
            adapter.share_group_norm = False
        assert adapter.share_group_norm
    adapter.share_group_norm = False
    with adapter:
        assert adapter.target.find(GroupNorm) is None


def test_an_exception_after_eject_is_not_lost() -> None:
    adapter = StyleAlignedAdapter(blocks())

    def fail() -> None:
        with adapter:
            adapter.eject()
            raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        fail()
