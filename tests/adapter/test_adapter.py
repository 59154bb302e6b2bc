import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion import SD1ControlnetAdapter, SD1UNet, SDXLUNet
from refiners.foundationals.latent_diffusion.style_aligned import StyleAlignedAdapter as RefinersStyleAlignedAdapter
from safetensors import safe_open
from torch import Tensor

from style_aligned import ReferenceBank, StyleAligned, StyleAlignedAdapter
from style_aligned.adapter.group_norm import GroupNorm
from style_aligned.adapter.self_attention import AttentionAdapter, only_self
from tests.chains import blocks, features, meta_unet, run, snapshot
from tests.oracle import relative_error

GOLDEN = Path(__file__).parents[1] / "golden"
with safe_open(GOLDEN / "google_attention.safetensors", framework="pt") as golden_file:
    GOLDEN_TENSORS: dict[str, Tensor] = {key: golden_file.get_tensor(key) for key in golden_file.keys()}  # noqa: SIM118
    GOLDEN_METADATA: dict[str, str] = golden_file.metadata()
GOLDEN_CASES: dict[str, dict[str, Any]] = json.loads(GOLDEN_METADATA["cases"])
SHARED_LAYERS: dict[str, list[bool]] = json.loads((GOLDEN / "google_shared_layers.json").read_text())
OPTIONS: list[dict[str, Any]] = [
    {},
    {"share_group_norm": True, "only_self_level": 0.3},
    {"full_attention_share": True},
    {"share_attention": False},
]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def attention() -> fl.Chain:
    """The self-attention of Google's outputs."""
    self_attention = fl.SelfAttention(embedding_dim=64, num_heads=4, use_bias=False)
    query, key, value, out = self_attention.layers(fl.Linear)
    for linear, name in ((query, "q"), (key, "k"), (value, "v"), (out, "out")):
        linear.weight.copy_(GOLDEN_TENSORS[f"{name}.weight"])
    out.bias.copy_(GOLDEN_TENSORS["out.bias"])
    return fl.Chain(self_attention)


@pytest.mark.parametrize("case", GOLDEN_CASES)
@pytest.mark.parametrize("set_size", [3, None])
def test_google_outputs_are_met(attention: fl.Chain, case: str, set_size: int | None) -> None:
    options = {name.removeprefix("shared_score_"): option for name, option in GOLDEN_CASES[case].items()}
    x, expected = GOLDEN_TENSORS["x"], GOLDEN_TENSORS[f"y.{case}"]
    assert relative_error(GOLDEN_TENSORS["y.vanilla"], expected) > 1e-2
    with StyleAlignedAdapter(attention, set_size=set_size, **options):
        assert relative_error(attention(x), expected) < 1e-6
    assert relative_error(attention(x), GOLDEN_TENSORS["y.vanilla"]) < 1e-6


def test_google_shared_group_norm_is_met() -> None:
    chain = fl.Chain(fl.GroupNorm(channels=64, num_groups=int(GOLDEN_METADATA["gn.num_groups"])))
    group_norm = chain.layer("GroupNorm", fl.GroupNorm)
    group_norm.weight.copy_(GOLDEN_TENSORS["gn.weight"])
    group_norm.bias.copy_(GOLDEN_TENSORS["gn.bias"])
    with StyleAlignedAdapter(chain, share_group_norm=True, set_size=3):
        assert relative_error(chain(GOLDEN_TENSORS["gn.x"]), GOLDEN_TENSORS["gn.y.shared"]) < 1e-6
    assert relative_error(chain(GOLDEN_TENSORS["gn.x"]), GOLDEN_TENSORS["gn.y.vanilla"]) < 1e-6


@pytest.mark.parametrize("level", SHARED_LAYERS)
def test_only_self_level_leaves_the_layers_that_google_leaves(level: str) -> None:
    unet = meta_unet(SDXLUNet)
    in_diffusers_order = [
        self_attention
        for block in ("DownBlocks", "UpBlocks", "MiddleBlock")
        for self_attention in unet.layer(block, fl.Chain).layers(fl.SelfAttention)
    ]
    StyleAlignedAdapter(unet, only_self_level=float(level)).inject()
    shares = [self_attention.find(StyleAligned) is not None for self_attention in in_diffusers_order]
    assert shares == SHARED_LAYERS[level]


def test_only_self_of_a_few_layers() -> None:
    assert only_self(total=4, level=0.01) == [False] * 4  # Google's code divides by zero here
    assert only_self(total=4, level=0.99) == [True] * 4
    assert only_self(total=4, level=0.5) == [True, False, True, False]
    assert only_self(total=0, level=1.0) == []


@pytest.mark.parametrize(("unet_type", "places"), [(SDXLUNet, 70), (SD1UNet, 16)])
def test_every_self_attention_of_a_unet_is_adapted(unet_type: type[SD1UNet] | type[SDXLUNet], places: int) -> None:
    unet = meta_unet(unet_type)
    StyleAlignedAdapter(unet).inject()
    self_attentions = list(unet.layers(fl.SelfAttention))
    assert len(self_attentions) == places
    assert all(self_attention.find(AttentionAdapter) is not None for self_attention in self_attentions)
    assert len(list(unet.layers(StyleAligned))) == 3 * places  # none in a cross-attention


def test_the_printed_self_attention_reads_like_the_article() -> None:
    chain = fl.Chain(fl.SelfAttention(embedding_dim=64, num_heads=4))
    StyleAlignedAdapter(chain).inject()
    printed = repr(chain.layer("SelfAttention", fl.SelfAttention))
    names = [line.strip("│├└─ ").split("(place")[0].split("(in_")[0] for line in printed.splitlines()]
    assert names[5:-1] == [
        "(CHAIN) SharedAttentionAdapter()",
        "(DISTR)",
        *("(CHAIN) StyleAligned(adain=True, share=False) #1",),
        *("(PAR)", "Identity()", "GetReferences", "AdaIn()", "GetArg(index=0)"),
        *("(CHAIN) StyleAligned(adain=True, share=True, scale=True) #2", "(PAR)", "Identity()", "GetReferences"),
        *("AdaIn()", "(DISTR)", "Identity()", "ScaleReferences()", "ShareReferences()"),
        *("(CHAIN) StyleAligned(adain=False, share=True) #3", "(PAR)", "Identity()", "GetReferences"),
        *("ShareReferences()",),
        "(CHAIN) SharedAttention()",
        "ScaledDotProductAttention(num_heads=4)",
    ]


@pytest.mark.parametrize("unet_type", [SDXLUNet, SD1UNet])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_eject_leaves_no_trace_in_the_tree(unet_type: type[SD1UNet] | type[SDXLUNet], options: dict[str, Any]) -> None:
    unet = meta_unet(unet_type)
    before, keys = snapshot(unet), list(unet.state_dict())
    adapter = StyleAlignedAdapter(unet, **options)
    assert snapshot(unet) == before
    assert adapter.inject() is adapter
    assert unet.parent is adapter
    assert snapshot(unet) != before
    assert list(unet.state_dict()) == keys, "weights saved now load into a plain U-Net"
    adapter.eject()
    assert unet.parent is None
    assert snapshot(unet) == before
    assert list(unet.state_dict()) == keys


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("assign", [False, True])
def test_weights_load_while_injected_and_stay(options: dict[str, Any], assign: bool) -> None:
    chain, x = blocks(), features(6, 10, 16)
    other = {key: tensor + 0.1 for key, tensor in chain.state_dict().items()}
    with StyleAlignedAdapter(chain, **options):
        chain.load_state_dict(other, assign=assign)
    expected = blocks()
    expected.load_state_dict(other)
    assert torch.equal(run(chain, x), run(expected, x))


def test_eject_leaves_no_trace_in_the_outputs() -> None:
    chain, x = blocks(), features(6, 10, 16)
    before = run(chain, x)
    adapter = StyleAlignedAdapter(chain, share_group_norm=True)
    for _ in range(2):
        adapter.inject()
        assert not torch.equal(run(chain, x), before)
        adapter.eject()
        assert torch.equal(run(chain, x), before)


def test_references_come_out_as_without_the_adapter() -> None:
    chain, x = blocks(), features(6, 10, 16)
    before = run(chain, x)
    with StyleAlignedAdapter(chain, scale=0.7, shift=0.4, strength=1.5, share_group_norm=True):
        aligned = run(chain, x)
    assert torch.equal(aligned[::3], before[::3])
    assert relative_error(aligned[1:3], before[1:3]) > 1e-2


def test_several_sets_in_a_batch_are_each_their_own() -> None:
    chain, x = blocks(), features(9, 10, 16)
    with StyleAlignedAdapter(chain, set_size=3, shift=0.3, share_group_norm=True):
        together = run(chain, x)
    prompt = features(9, 5, 16, seed=7)
    with StyleAlignedAdapter(chain, set_size=3, shift=0.3, share_group_norm=True):
        for start in (0, 3, 6):
            chain.set_context("blocks", {"prompt": prompt[start : start + 3]})
            torch.testing.assert_close(chain(x[start : start + 3]), together[start : start + 3])


@pytest.mark.parametrize(("rows", "set_size"), [(1, 1), (2, None), (4, 1)])
def test_a_set_of_one_is_plain(rows: int, set_size: int | None) -> None:
    chain, x = blocks(), features(rows, 10, 16)
    before = run(chain, x)
    with StyleAlignedAdapter(chain, set_size=set_size, share_group_norm=True, strength=2.0):
        assert torch.equal(run(chain, x), before)


class TestStrength:
    """0 is the plain model and 1 the adapter without it, bit for bit; in between and beyond there are no jumps."""

    OPTIONS: tuple[dict[str, Any], ...] = (
        {},
        {"share_group_norm": True, "scale": 0.8, "shift": 0.3},
        {"share_attention": False, "adain_values": True},
    )

    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_zero_is_the_plain_model(self, options: dict[str, Any]) -> None:
        chain, x, bank = blocks(), features(6, 10, 16), ReferenceBank()
        plain = run(chain, x)
        with StyleAlignedAdapter(chain, strength=0, **options) as adapter:
            assert torch.equal(run(chain, x), plain)
            with adapter.record(bank):
                run(chain, x[::3])
            with adapter.replay(bank):
                assert torch.equal(run(chain, x), plain)
                adapter.strength = 1
                assert not torch.equal(run(chain, x), plain), "what was recorded at 0 can be replayed at 1"

    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_it_is_continuous(self, options: dict[str, Any]) -> None:
        chain, x = blocks(), features(6, 10, 16)
        plain = run(chain, x)
        with StyleAlignedAdapter(chain, **options) as adapter:
            aligned = run(chain, x)
            outputs: list[Tensor] = []
            for strength in (1e-6, 0.5, 1 - 1e-6, 1, 1 + 1e-6, 2.0):
                adapter.strength = strength
                outputs.append(run(chain, x))
        nearly_none, half, below, one, above, double = outputs
        assert torch.equal(one, aligned)
        assert relative_error(nearly_none, plain) < 1e-4
        assert relative_error(below, aligned) < 1e-4
        assert relative_error(above, aligned) < 1e-4
        assert relative_error(half, plain) > 1e-3
        assert relative_error(half, aligned) > 1e-3
        if "share_attention" not in options:  # AdaIN alone has no more than all
            assert relative_error(double, aligned) > 1e-3

    def test_two_equals_a_shift_of_log_two(self) -> None:
        chain, x = blocks(), features(6, 10, 16)
        with StyleAlignedAdapter(chain, strength=2.0):
            double = run(chain, x)
        with StyleAlignedAdapter(chain, shift=0.69314718):
            torch.testing.assert_close(run(chain, x), double)


def test_options_can_be_changed_while_injected() -> None:
    chain, x = blocks(), features(6, 10, 16)
    adapter = StyleAlignedAdapter(chain, share_group_norm=True).inject()
    adapter.scale, adapter.shift, adapter.strength, adapter.set_size = 0.5, 0.25, 0.7, 2
    changed = run(chain, x)
    adapter.eject()
    options: dict[str, Any] = {"scale": 0.5, "shift": 0.25, "strength": 0.7, "set_size": 2}
    assert {name: getattr(adapter, name) for name in options} == options
    with StyleAlignedAdapter(chain, share_group_norm=True, **options):
        assert torch.equal(run(chain, x), changed)
    adapter.inject()  # with the options of before its eject
    assert torch.equal(run(chain, x), changed)


def test_the_builtin_adapter_agrees_where_both_mean_the_same() -> None:
    chain, x = blocks(), features(6, 40, 16)
    chain.replace(chain[0], fl.Identity())
    builtin = RefinersStyleAlignedAdapter(chain).inject()  # pyright: ignore
    expected = run(chain, x)
    builtin.eject()
    with StyleAlignedAdapter(chain):
        assert relative_error(run(chain, x), expected) < 1e-4  # they differ in epsilon


def test_gradients_flow() -> None:
    chain, x = blocks(), features(6, 10, 16)
    with torch.enable_grad(), StyleAlignedAdapter(chain, shift=0.5, share_group_norm=True):
        run(chain, x).square().mean().backward()
    for name, parameter in chain.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not name.endswith("Linear_2.bias"):  # a constant added to all keys moves no score
            assert parameter.grad.abs().max() > 0, name


def test_the_attentions_of_a_controlnet_are_left_alone() -> None:
    unet = meta_unet(SD1UNet)
    assert isinstance(unet, SD1UNet)
    controlnet = SD1ControlnetAdapter(unet, name="canny").inject()
    adapter = StyleAlignedAdapter(unet, share_group_norm=True).inject()
    assert len(list(unet.layers(fl.SelfAttention))) > 16
    assert controlnet.controlnet.find(StyleAligned) is None
    assert controlnet.controlnet.find(GroupNorm) is None
    assert len(list(unet.layers(StyleAligned))) == 3 * 16
    controlnet.eject()
    adapter.eject()
    assert unet.find(StyleAligned) is None
    assert unet.parent is None
