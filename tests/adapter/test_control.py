"""Masks, blends, windows, halves and query guidance: against the oracle, and their neutral values bit for bit."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.layers.chain import ChainError
from refiners.foundationals.latent_diffusion import SD1UNet, SDXLUNet
from torch import Tensor

from style_aligned import ReferenceBank, StyleAlignedAdapter
from style_aligned.adapter.places import find_group_norms, find_presets
from tests import oracle
from tests.adapter.test_shared_attention import expect, group_norm, keywords, self_attention
from tests.chains import blocks, features, meta_unet, run
from tests.oracle import QKV, Options, relative_error

MASK = torch.tensor([[1.0, 0.5, 0.0, 0.0, 0.2], [1.0, 1.0, 0.0, 0.3, 0.0], [0.0, 0.1, 0.9, 1.0, 1.0], [0.0] * 5])


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def rows_of(qkv: list[Tensor]) -> list[QKV]:
    return [(query, key, value) for query, key, value in zip(*qkv, strict=True)]


def project(attention: fl.SelfAttention, x: Tensor) -> list[QKV]:
    return rows_of([linear(x).double() for linear in list(attention.layers(fl.Linear))[:3]])


@pytest.mark.parametrize("options", [Options(), Options(strength=0.4, scale=1.3), Options(strength=2.5, shift=0.3)])
@pytest.mark.parametrize("mode", ["batch", "replay"])
def test_a_mask_follows_the_equations(options: Options, mode: str) -> None:
    options, attention, x = replace(options, mask=MASK.flatten()), self_attention(), features(6, 20, 16)
    expected = expect(attention, x, lambda qkv: oracle.shared_attention(*qkv, num_heads=2, options=options))
    bank, targets = ReferenceBank(), [1, 2, 4, 5]
    with StyleAlignedAdapter(fl.Chain(attention), **keywords(options)) as adapter:
        unmasked = adapter.target(x)
        adapter.reference_mask = MASK
        if mode == "batch":
            output = adapter.target(x)
        else:
            with adapter.record(bank):
                adapter.target(x[::3])
            adapter.reference_mask = None  # it is the bank's
            with adapter.replay(bank):
                output = torch.zeros_like(unmasked)
                output[targets] = adapter.target(x[targets])
    assert relative_error(output[targets], expected[targets]) < 1e-6
    assert relative_error(unmasked[targets], expected[targets]) > 1e-2


@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_a_masked_group_norm_follows_the_equations(strength: float) -> None:
    layer, x = group_norm(), features(3, 8, 20).reshape(3, 8, 4, 5)
    chain = fl.Chain(layer)
    expected = [
        oracle.shared_group_norm(row, x[0], 2, layer.weight, layer.bias, layer.eps, strength, MASK) for row in x[1:]
    ]
    with StyleAlignedAdapter(chain, share_group_norm=True, set_size=3, strength=strength) as adapter:
        unmasked = chain(x)
        adapter.reference_mask = MASK
        output = chain(x)
    assert relative_error(output[1:], torch.stack(expected)) < 1e-5
    assert relative_error(unmasked[1:], torch.stack(expected)) > 1e-2


def test_a_mask_of_ones_is_none() -> None:
    chain, x = blocks(), features(6, 10, 16)
    with StyleAlignedAdapter(chain, share_group_norm=True) as adapter:
        expected = run(chain, x)
        adapter.reference_mask = torch.ones(2, 5)
        assert torch.equal(run(chain, x), expected)


def test_a_mask_is_brought_to_each_resolution_by_area() -> None:
    chain, x = fl.Chain(fl.SelfAttention(16)), features(3, 5, 16)
    halves = torch.tensor([[1.0] * 5, [0.0] * 5])
    with StyleAlignedAdapter(chain, set_size=3) as adapter:
        adapter.reference_mask = halves
        with pytest.raises(ChainError, match="expected layers at a resolution of latents of 2x5, got 5 tokens"):
            chain(x)
        adapter.reference_mask = halves.repeat_interleave(2, dim=1)  # 2x10, of which 1x5 is half
        half = chain(x)
        adapter.reference_mask = torch.full((1, 5), 0.5)
        torch.testing.assert_close(chain(x), half)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(4, 5), "leaves something of the reference, got zeros alone"),
        (torch.full((4, 5), 1.5), "weights between 0 and 1"),
        (torch.full((4, 5), float("nan")), "weights between 0 and 1"),
        (torch.ones(1, 4, 5), r"of shape \(height, width\)"),
    ],
)
def test_masks_that_are_refused(mask: Tensor, message: str) -> None:
    adapter = StyleAlignedAdapter(blocks())
    with pytest.raises(ValueError, match=message):
        adapter.reference_mask = mask
    assert adapter.reference_mask is None


class TestBlend:
    def record(self, adapter: StyleAlignedAdapter[Any], *references: Tensor) -> list[ReferenceBank]:
        banks = [ReferenceBank() for _ in references]
        for bank, reference in zip(banks, references, strict=True):
            with adapter.record(bank):
                adapter.target(reference)
        return banks

    @pytest.mark.parametrize("options", [Options(), Options(strength=0.4, adain_values=True), Options(strength=2.0)])
    def test_it_follows_the_equations(self, options: Options) -> None:
        attention, x = self_attention(), features(2, 20, 16)
        one, two = features(1, 20, 16, seed=1), features(1, 35, 16, seed=2)
        adapter = StyleAlignedAdapter(fl.Chain(attention), **keywords(options)).inject()
        with adapter.replay(*self.record(adapter, one, two), weights=[0.7, 0.3]):
            output = adapter.target(x)
        adapter.eject()
        references = [project(attention, one)[0], project(attention, two)[0]]

        def attend(qkv: list[Tensor]) -> Tensor:
            return torch.stack(
                [oracle.attend_to_references(row, references, 2, options, (0.7, 0.3)) for row in rows_of(qkv)]
            )

        assert relative_error(output, expect(attention, x, attend)) < 1e-6

    def test_one_and_nothing_is_the_one(self) -> None:
        chain, x = blocks(), features(4, 10, 16)
        with StyleAlignedAdapter(chain, share_group_norm=True) as adapter:
            banks = [ReferenceBank(), ReferenceBank()]
            for seed, bank in enumerate(banks):
                with adapter.record(bank):
                    run(chain, features(2, 10, 16, seed=seed + 1))
            with adapter.replay(banks[0]):
                alone = run(chain, x)
            with adapter.replay(*banks, weights=(1.0, 0.0)):
                assert torch.equal(run(chain, x), alone)
            with adapter.replay(banks[0], banks[0], weights=(3.0, 3.0)):
                torch.testing.assert_close(run(chain, x), alone)
            with adapter.replay(*banks):
                assert relative_error(run(chain, x), alone) > 1e-3

    @pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
    def test_weights_that_are_refused(self, weights: list[float]) -> None:
        adapter = StyleAlignedAdapter(fl.Chain(fl.SelfAttention(16))).inject()
        banks = self.record(adapter, features(1, 10, 16), features(1, 10, 16, seed=1))
        with pytest.raises(ValueError, match=r"expected (a weight for each bank|weights of at least 0)"):
            adapter.replay(*banks, weights=weights).__enter__()

    def test_banks_of_other_row_counts(self) -> None:
        chain = blocks()
        adapter = StyleAlignedAdapter(chain).inject()
        banks = [ReferenceBank(), ReferenceBank()]
        for bank, rows in zip(banks, (2, 1), strict=True):
            with adapter.record(bank):
                run(chain, features(rows, 10, 16))
        message = (
            "expected banks with the same number of references, got 1 and 2: record all of them with guidance, or none"
        )
        with pytest.raises(ValueError, match=message):
            adapter.replay(*banks).__enter__()
        with adapter.replay(*banks, weights=(1.0, 0.0)):  # it does not count
            run(chain, features(4, 10, 16))


class TestWindows:
    def test_a_strength_for_each_layer(self) -> None:
        chain, x = fl.Chain(fl.SelfAttention(16), fl.SelfAttention(16)), features(6, 10, 16)
        plain_first = chain.layer(0, fl.SelfAttention)(x)
        with StyleAlignedAdapter(chain, layers=["layer.1"], strength=0.6):
            output = chain(x)
        with StyleAlignedAdapter(fl.Chain(chain[1].structural_copy()), strength=0.6) as adapter:  # pyright: ignore
            assert torch.equal(adapter.target(plain_first), output)
        with StyleAlignedAdapter(chain, layers={"layer.1": 0.6}):
            assert torch.equal(chain(x), output)

    @pytest.mark.parametrize("layers", [["layer"], {"layer": 1.0, "out": 1}, ["layer.0", "layer.1", "out"]])
    def test_all_layers_are_no_window(self, layers: Any) -> None:
        chain, x = blocks(), features(6, 10, 16)
        options = {"share_group_norm": layers != ["layer"]}
        with StyleAlignedAdapter(chain, **options) as adapter:
            expected = run(chain, x)
            adapter.selected_layers = layers
            assert torch.equal(run(chain, x), expected)
            adapter.selected_layers = {"layer": 0.0}
            assert not torch.equal(run(chain, x), expected)

    def test_what_is_set_is_what_is_read(self) -> None:
        adapter = StyleAlignedAdapter(blocks(), layers=["layer.1"])
        assert adapter.selected_layers == ["layer.1"]
        adapter.selected_layers = {"layer.0": 0.5}
        assert adapter.selected_layers == adapter.options["layers"] == {"layer.0": 0.5}
        assert list(adapter.layers(fl.SelfAttention)) == list(adapter.target.layers(fl.SelfAttention))
        with pytest.raises(ValueError, match=r"expected layers of this model, such as .*, got 'down'"):
            adapter.selected_layers = ["down"]
        assert adapter.selected_layers == {"layer.0": 0.5}

    def test_names_are_those_of_diffusers(self) -> None:
        unet = meta_unet(SDXLUNet)
        layers = StyleAlignedAdapter(unet).selectable_layers
        # as its configuration says: down blocks of 0, 2x2, 2x10 layers, the middle of 10, and up blocks of 3x10, 3x2, 0
        expected = [
            f"{block}.{index}.{i}"
            for block, indices, depth in (
                *(("down.1", 2, 2), ("down.2", 2, 10), ("up.0", 3, 10), ("up.1", 3, 2), ("middle", 1, 10)),
            )
            for index in range(indices)
            for i in range(depth)
        ]
        assert list(layers) == expected
        assert {layers[name] for name in ("down.1.0.0", "up.1.2.1")} == {2}
        assert {layers[name] for name in ("down.2.1.9", "middle.0.0", "up.0.0.0")} == {4}
        sd1 = StyleAlignedAdapter(meta_unet(SD1UNet)).selectable_layers
        assert list(sd1)[:7] == [f"down.{block}.{index}.0" for block in range(3) for index in (0, 1)] + ["up.1.0.0"]
        assert list(sd1)[-1] == "middle.0.0"
        names = ("down.0.0.0", "down.2.1.0", "middle.0.0", "up.1.0.0", "up.3.2.0")
        assert [sd1[name] for name in names] == [1, 4, 8, 4, 1]
        norms = [place.name for place in find_group_norms(unet)]
        assert norms.count("up.0.1") == 3  # two of the residual block, one of the attention
        assert norms.count("out") == 1

    def test_presets_are_those_of_the_papers(self) -> None:
        presets = find_presets(list(StyleAlignedAdapter(meta_unet(SDXLUNet)).selectable_layers))
        last = [f"up.1.{i}.{j}" for i in range(3) for j in (0, 1)]
        assert presets["style"] == [*(f"up.0.2.{i}" for i in range(4, 10)), *last]
        assert presets["layout"] == ["down.2.1"]
        assert find_presets(["down.0.0.0", "up.0.0.0", "up.1.0.0", "middle.0.0"]) == {
            "style": ["up"], "layout": ["down"],
        }  # fmt: skip

    def test_group_norms_go_with_a_preset(self) -> None:
        unet = meta_unet(SD1UNet)
        strength = StyleAlignedAdapter(unet, layers=["style"], share_group_norm=True)._sharing.strength_at  # pyright: ignore[reportPrivateUsage]
        shared = {place.name for place in find_group_norms(unet) if strength(place.name)}
        assert shared == {place.name for place in find_group_norms(unet) if place.name.startswith("up.")}

    def test_a_preset_that_selects_nothing_is_refused(self) -> None:
        chain = fl.Chain(fl.SelfAttention(embedding_dim=8, num_heads=2))
        with pytest.raises(ValueError, match=r"expected layers of this model, such as .*, got 'style'"):
            StyleAlignedAdapter(chain, layers=["style"])

    def test_query_guidance_alone_follows_the_steps(self) -> None:
        chain = fl.Chain(fl.SelfAttention(embedding_dim=8, num_heads=2))
        adapter = StyleAlignedAdapter(chain, set_size=2, layers={"layer.0": 0}, query_guidance=0.5).inject()
        assert adapter.set_step(0, 10)
        adapter.steps = (0.5, 1.0)
        assert not adapter.set_step(0, 10)

    def test_what_was_recorded_without_query_guidance_is_not_replayed_with_it(self) -> None:
        chain = fl.Chain(fl.SelfAttention(embedding_dim=8, num_heads=2))
        adapter = StyleAlignedAdapter(chain, set_size=1).inject()
        bank = ReferenceBank()
        with adapter.record(bank):
            chain(torch.randn(2, 4, 8))
        adapter.selected_layers, adapter.query_guidance = {"layer.0": 0}, 0.5
        with (
            adapter.replay(bank),
            pytest.raises(ChainError, match=r"expected a bank that has recorded layer\.0\.negative_queries"),
        ):
            chain(torch.randn(2, 4, 8))

    def test_full_attention_share_is_refused_beside_a_mask(self) -> None:
        chain = fl.Chain(fl.SelfAttention(embedding_dim=8, num_heads=2))
        adapter = StyleAlignedAdapter(chain)
        adapter.reference_mask = torch.tensor([[0.0, 1.0]])
        with pytest.raises(ValueError, match="expected no reference_mask beside full_attention_share"):
            adapter.full_attention_share = True

    def test_parts_of_names_select(self) -> None:
        unet = meta_unet(SDXLUNet)
        adapter = StyleAlignedAdapter(unet, layers={"up": 1, "up.0": 0.5, "up.0.1.3": 2, "layout": 0.25})
        strength = adapter._sharing.strength_at  # pyright: ignore[reportPrivateUsage]
        places = ("up.1.0.0", "up.0.0.0", "up.0.1.3", "up.0.1.3.keys", "down.2.1.9", "down.2.0.0", "middle.0.0")
        assert [strength(place) for place in places] == [1, 0.5, 2, 2, 0.25, 0, 0]

    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            (["up.0.4"], r"expected layers of this model, such as .*up\.0\.\d.*, got 'up.0.4'"),
            (["styel"], "such as .*style.*, got 'styel'"),
            ([], "expected layers to be names of layers, or strengths of at least 0 by name, got"),
            ({"up": -1}, "expected layers to be names of layers, or strengths of at least 0 by name, got"),
        ],
    )
    def test_layers_that_are_refused(self, layers: Any, message: str) -> None:
        unet = meta_unet(SDXLUNet)
        with pytest.raises(ValueError, match=message):
            StyleAlignedAdapter(unet, layers=layers)

    def test_steps(self) -> None:
        chain, x = blocks(), features(6, 10, 16)
        plain = run(chain, x)
        with StyleAlignedAdapter(chain, steps=(0.2, 0.6), share_group_norm=True) as adapter:
            aligned = run(chain, x)  # without a word of the steps
            assert not torch.equal(aligned, plain)
            shares = [adapter.set_step(step, 5) for step in range(5)]
            assert shares == [False, True, True, False, False]
            assert torch.equal(run(chain, x), plain)
            adapter.set_step(1, 5)
            assert torch.equal(run(chain, x), aligned)
            adapter.strength = 0
            assert not adapter.set_step(1, 5)

    @pytest.mark.parametrize("steps", [(0.5, 0.5), (0.6, 0.2), (-0.1, 0.5), (0, 1.5), (0.0, float("nan"))])
    def test_steps_that_are_refused(self, steps: tuple[float, float]) -> None:
        with pytest.raises(ValueError, match="expected steps to be a part of the way, from 0 to 1, that is not empty"):
            StyleAlignedAdapter(blocks(), steps=steps)


class TestHalves:
    @pytest.mark.parametrize("mode", ["batch", "replay"])
    def test_the_negative_half_is_plain(self, mode: str) -> None:
        chain, x, bank = blocks(), features(6, 10, 16), ReferenceBank()
        plain = run(chain, x)
        with StyleAlignedAdapter(chain, share_group_norm=True) as adapter:
            both = run(chain, x)
            adapter.halves = "positive"
            if mode == "batch":
                output = run(chain, x)
            else:
                output, prompt = plain.clone(), features(6, 5, 16, seed=7)
                for mode_of, rows in ((adapter.record, [0, 3]), (adapter.replay, [1, 2, 4, 5])):
                    chain.set_context("blocks", {"prompt": prompt[rows]})
                    with mode_of(bank):
                        output[rows] = chain(x[rows])
        torch.testing.assert_close(output[:3], plain[:3])
        torch.testing.assert_close(output[3:], both[3:], rtol=1e-5, atol=1e-6)
        assert relative_error(both[1:3], plain[1:3]) > 1e-2

    def test_it_takes_guidance(self) -> None:
        unet = meta_unet(SDXLUNet)
        StyleAlignedAdapter(unet, set_size=3, halves="positive").inject()
        with pytest.raises(ValueError, match="got a batch of 3 rows, expected a negative and a positive half"):
            unet(torch.randn(3, 4, 8, 8))

    def test_values_that_are_refused(self) -> None:
        options: dict[str, Any] = {"halves": "negative"}
        with pytest.raises(ValueError, match="expected halves to be both or positive, got 'negative'"):
            StyleAlignedAdapter(blocks(), **options)


class TestQueryGuidance:
    """The first of two self-attentions shares nothing, and its negative rows take the reference's queries."""

    @pytest.mark.parametrize("amount", [1.0, 0.3])
    @pytest.mark.parametrize("mode", ["batch", "replay"])
    def test_it_follows_the_equations(self, amount: float, mode: str) -> None:
        attention, x, bank = self_attention(), features(6, 20, 16), ReferenceBank()
        chain = fl.Chain(attention, fl.SelfAttention(16))

        def attend(qkv: list[Tensor]) -> Tensor:
            rows = rows_of(qkv)
            queries = [(1 - amount) * row[0] + amount * rows[0][0] for row in rows[:3]] + [row[0] for row in rows[3:]]
            ones = torch.ones(20).double()
            return torch.stack(
                [oracle.attention(query, row[1], row[2], 2, ones) for query, row in zip(queries, rows, strict=True)]
            )

        expected = expect(attention, x, attend)
        with StyleAlignedAdapter(chain, layers=["layer.1"], query_guidance=amount) as adapter:
            outputs: list[Tensor] = []

            def keep(_: Any, __: Any, output: Tensor) -> None:
                outputs.append(output)

            attention.register_forward_hook(keep)
            if mode == "batch":
                chain(x)
                output = outputs[0]
            else:
                with adapter.record(bank):
                    chain(x[[0, 3]])
                with adapter.replay(bank):
                    chain(x[[1, 2, 4, 5]])
                output = torch.cat([outputs[0][:1], outputs[1][:2], outputs[0][1:], outputs[1][2:]])
        assert relative_error(output, expected) < 1e-6

    def test_none_is_none(self) -> None:
        chain, x = blocks(), features(6, 10, 16)
        with StyleAlignedAdapter(chain, layers=["layer.1"]) as adapter:
            expected = run(chain, x)
            adapter.query_guidance = 0.5
            assert not torch.equal(run(chain, x), expected)
            adapter.query_guidance = 0.0
            assert torch.equal(run(chain, x), expected)

    def test_what_it_needs(self) -> None:
        with pytest.raises(ValueError, match="expected layers beside query_guidance"):
            StyleAlignedAdapter(blocks(), query_guidance=1.0)
        chain = fl.Chain(fl.SelfAttention(16), fl.SelfAttention(16))
        adapter = StyleAlignedAdapter(chain, layers=["layer.1"], query_guidance=1.0).inject()
        banks = [ReferenceBank(), ReferenceBank()]
        for bank in banks:
            with adapter.record(bank):
                chain(features(2, 10, 16))
        with adapter.replay(banks[0]), pytest.raises(ChainError, match="expected targets of the reference's size"):
            chain(features(2, 20, 16))
        with pytest.raises(ValueError, match="expected one reference beside query_guidance, got several"):
            adapter.replay(*banks).__enter__()
