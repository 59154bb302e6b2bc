import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.layers.chain import ChainError
from refiners.foundationals.latent_diffusion import SD1ControlnetAdapter, SD1UNet, SDXLUNet
from refiners.foundationals.latent_diffusion.stable_diffusion_1.self_attention_guidance import SD1SAGAdapter
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.self_attention_guidance import SDXLSAGAdapter
from refiners.foundationals.latent_diffusion.style_aligned import StyleAlignedAdapter as RefinersStyleAlignedAdapter
from safetensors import safe_open
from torch import Tensor

from style_aligned import ReferenceBank, StyleAligned, StyleAlignedAdapter
from style_aligned.shared import SharedGroupNorm, SharedScaledDotProductAttention
from style_aligned.sites import only_self
from tests.oracle import relative_error
from tests.test_layers import features

GOLDEN = Path(__file__).parent / "golden"
with safe_open(GOLDEN / "google_attention.safetensors", framework="pt") as golden_file:
    GOLDEN_TENSORS: dict[str, Tensor] = {key: golden_file.get_tensor(key) for key in golden_file.keys()}  # noqa: SIM118
    GOLDEN_METADATA: dict[str, str] = golden_file.metadata()
GOLDEN_CASES: dict[str, dict[str, Any]] = json.loads(GOLDEN_METADATA["cases"])
SHARED_LAYERS: dict[str, list[bool]] = json.loads((GOLDEN / "google_shared_layers.json").read_text())


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


class Blocks(fl.Chain):
    """A few self-attentions, a cross-attention and a group normalization."""

    def __init__(self) -> None:
        super().__init__(
            fl.GroupNorm(channels=10, num_groups=2),
            fl.Residual(fl.SelfAttention(embedding_dim=16, num_heads=2)),
            fl.Residual(
                fl.Parallel(
                    fl.Identity(),
                    fl.UseContext(context="blocks", key="prompt"),
                    fl.UseContext(context="blocks", key="prompt"),
                ),
                fl.Attention(embedding_dim=16, num_heads=2),
            ),
            fl.Residual(fl.SelfAttention(embedding_dim=16, num_heads=4)),
        )


def blocks() -> Blocks:
    torch.manual_seed(0)
    return Blocks()


def run(chain: fl.Chain, x: Tensor) -> Tensor:
    chain.set_context("blocks", {"prompt": features(len(x), 5, 16, seed=7)})
    return chain(x)


def snapshot(chain: fl.Chain) -> list[tuple[str, int, str, str]]:
    """Every module at any depth: its path, identity and contexts, and the identity of its parent."""
    return [
        (
            path,
            id(module),
            repr(module.provider.contexts) if isinstance(module, fl.Chain) else "",
            str(id(module.parent)) if isinstance(module, fl.Chain) else "",
        )
        for path, module in chain.named_modules()
    ]


def meta_unet(unet_type: type[SD1UNet] | type[SDXLUNet]) -> SD1UNet | SDXLUNet:
    unet = unet_type(in_channels=4, device="meta")
    unet.set_context("unet", {"residuals": [0.0] * 13})  # spreads the contexts over the tree, as any use of it does
    return unet


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


@pytest.mark.parametrize(("unet_type", "sites"), [(SDXLUNet, 70), (SD1UNet, 16)])
def test_every_self_attention_of_a_unet_is_adapted(unet_type: type[SD1UNet] | type[SDXLUNet], sites: int) -> None:
    unet = meta_unet(unet_type)
    StyleAlignedAdapter(unet).inject()
    self_attentions = list(unet.layers(fl.SelfAttention))
    assert len(self_attentions) == sites
    for self_attention in self_attentions:
        _, _, aligned, attention, _ = self_attention
        assert isinstance(aligned, fl.Distribute)
        assert [type(layer) for layer in aligned] == [StyleAligned] * 3
        assert isinstance(attention, SharedScaledDotProductAttention)
    assert len(list(unet.layers(StyleAligned))) == 3 * sites  # none in a cross-attention


@pytest.mark.parametrize("unet_type", [SDXLUNet, SD1UNet])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"share_group_norm": True, "only_self_level": 0.3},
        {"full_attention_share": True},
        {"share_attention": False},
    ],
    ids=str,
)
def test_eject_leaves_no_trace_in_the_tree(unet_type: type[SD1UNet] | type[SDXLUNet], options: dict[str, Any]) -> None:
    unet = meta_unet(unet_type)
    before, keys = snapshot(unet), list(unet.state_dict())
    adapter = StyleAlignedAdapter(unet, **options)
    assert snapshot(unet) == before
    assert adapter.inject() is adapter
    assert unet.parent is adapter
    assert len(snapshot(unet)) != len(before)
    adapter.eject()
    assert unet.parent is None
    assert snapshot(unet) == before
    assert list(unet.state_dict()) == keys


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
    with StyleAlignedAdapter(chain, scale=0.7, shift=0.4, share_group_norm=True):
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
    with StyleAlignedAdapter(chain, set_size=set_size):
        assert torch.equal(run(chain, x), before)


def test_options_can_be_changed_while_injected() -> None:
    chain, x = blocks(), features(6, 10, 16)
    adapter = StyleAlignedAdapter(chain, share_group_norm=True).inject()
    adapter.scale, adapter.shift, adapter.set_size = 0.5, 0.25, 2
    changed = run(chain, x)
    adapter.eject()
    assert (adapter.scale, adapter.shift, adapter.set_size) == (0.5, 0.25, 2)
    with StyleAlignedAdapter(chain, share_group_norm=True, scale=0.5, shift=0.25, set_size=2):
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


COMPILE = """
import torch
from refiners.fluxion import layers as fl
from style_aligned import StyleAlignedAdapter

chain = fl.Chain(fl.GroupNorm(channels=8, num_groups=2), fl.SelfAttention(16), fl.SelfAttention(16))
adapter = StyleAlignedAdapter(chain, shift=0.5, share_group_norm=True).inject()
compiled = torch.compile(chain, backend="aot_eager", fullgraph=True)
for rows in (6, 4):
    x = torch.randn(rows, 8, 16)
    torch.testing.assert_close(compiled(x), chain(x))
adapter.shift = 2.0
torch.testing.assert_close(compiled(x), chain(x))
print("compiled")
"""


def test_compiles_as_a_whole() -> None:
    # in a process of its own, where annotations are not executed
    process = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
    assert process.stdout == "compiled\n", process.stderr


def test_the_attentions_of_a_controlnet_are_left_alone() -> None:
    unet = meta_unet(SD1UNet)
    assert isinstance(unet, SD1UNet)
    controlnet = SD1ControlnetAdapter(unet, name="canny").inject()
    adapter = StyleAlignedAdapter(unet, share_group_norm=True).inject()
    assert len(list(unet.layers(fl.SelfAttention))) > 16
    assert controlnet.controlnet.find(StyleAligned) is None
    assert controlnet.controlnet.find(SharedGroupNorm) is None
    assert len(list(unet.layers(StyleAligned))) == 3 * 16
    controlnet.eject()
    adapter.eject()
    assert unet.find(StyleAligned) is None
    assert unet.parent is None


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


def test_a_target_in_a_mode_or_in_an_adapter_without_layers() -> None:
    chain = blocks()
    adapter = StyleAlignedAdapter(chain).inject()
    with adapter.record(ReferenceBank()), pytest.raises(ValueError, match="that holds a RecordReferences already"):
        StyleAlignedAdapter(chain)
    adapter.eject()
    late = StyleAlignedAdapter(chain)
    StyleAlignedAdapter(chain, only_self_level=1.0).inject()
    with pytest.raises(ValueError, match="got one in another StyleAlignedAdapter"):
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


def test_a_target_without_self_attention() -> None:
    with pytest.raises(ValueError, match="at least one self-attention, got a Chain with none"):
        StyleAlignedAdapter(fl.Chain(fl.Linear(4, 4), fl.Attention(embedding_dim=4)))
    with pytest.raises(ValueError, match="at least one self-attention or group normalization, got a Chain with none"):
        StyleAlignedAdapter(fl.Chain(fl.Linear(4, 4)), share_group_norm=True)


def test_a_causal_self_attention() -> None:
    with pytest.raises(ValueError, match=r"that is not causal, got .*SelfAttention in a Chain"):
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
        ({"set_size": 0}, "expected set_size to be at least 1, got 0"),
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
    for name in ("scale", "shift", "set_size"):
        if name in options:
            adapter = StyleAlignedAdapter(blocks(), full_attention_share=options.get("full_attention_share", False))
            before = getattr(adapter, name)
            with pytest.raises(ValueError, match=message):
                setattr(adapter, name, options[name])
            assert getattr(adapter, name) == before


WRONG_TYPES = """
from refiners.fluxion import layers as fl
from style_aligned import StyleAlignedAdapter

for target, options in (
    (fl.Linear(4, 4), {}),
    (fl.Chain(fl.SelfAttention(4)), {"scale": "2"}),
    (fl.Chain(fl.SelfAttention(4)), {"scale": True}),
    (fl.Chain(fl.SelfAttention(4)), {"set_size": 2.0}),
    (fl.Chain(fl.SelfAttention(4)), {"adain_keys": 1}),
):
    try:
        StyleAlignedAdapter(target, **options)
    except TypeError as error:
        print(error)
"""


def test_options_of_a_wrong_type() -> None:
    # in a process of its own, where annotations are not executed
    output = subprocess.run([sys.executable, "-c", WRONG_TYPES], capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == [
        "expected a target that is a Chain, such as an SDXLUNet, got a Linear",
        "expected scale to be a number, got '2'",
        "expected scale to be a number, got True",
        "expected set_size to be an integer or None, got 2.0",
        "expected adain_keys to be True or False, got 1",
    ]


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
        with pytest.raises(
            ChainError, match="got a batch of 4 rows whose halves differ, expected the same latents twice"
        ):
            self.ask(torch.randn(4, 4, 8, 8))

    def test_halves_that_are_equal(self) -> None:
        with pytest.raises(ChainError, match="context entry diffusion"):  # on to the U-Net, that lacks its contexts
            self.ask(torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1))

    def test_halves_that_differ_with_a_set_size(self) -> None:
        with pytest.raises(ChainError, match="context entry diffusion"):
            self.ask(torch.randn(4, 4, 8, 8), set_size=4)

    def test_a_set_size_of_both_halves(self) -> None:
        halves = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1)
        with pytest.raises(ChainError, match=r"whose halves are equal, .* a set_size of 4: expected 2"):
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
        with pytest.raises(ChainError, match="got a batch of 3 rows, expected the two guidance halves"):
            self.ask(torch.randn(3, 4, 8, 8))

    def test_rows_that_do_not_divide(self) -> None:
        with pytest.raises(ChainError, match="got a batch of 6 rows, expected a multiple of set_size=4"):
            self.ask(torch.randn(6, 4, 8, 8), set_size=4, full_attention_share=True)

    def test_a_wrong_rank(self) -> None:
        with pytest.raises(ChainError, match=r"expected latents of rank 4 .* got a tensor of rank 3"):
            self.ask(torch.randn(2, 4, 8))


@pytest.mark.parametrize(("unet_type", "sag_type"), [(SDXLUNet, SDXLSAGAdapter), (SD1UNet, SD1SAGAdapter)])
def test_self_attention_guidance_goes_in_first(unet_type: Any, sag_type: Any) -> None:
    unet = meta_unet(unet_type)
    before = snapshot(unet)
    sag = sag_type(unet).inject()
    adapter = StyleAlignedAdapter(unet).inject()
    with pytest.raises(ChainError, match="halves differ"):
        unet(torch.randn(4, 4, 8, 8))
    adapter.eject()
    sag.eject()
    assert [path for path, *_ in snapshot(unet)] == [path for path, *_ in before]

    adapter.inject()
    sag_type(unet).inject()
    with pytest.raises(ChainError, match=r"got a SelfAttentionMap between StyleAligned .* to be injected first"):
        unet(torch.randn(4, 4, 8, 8))


FAST = """
import time
from refiners.foundationals.latent_diffusion import SDXLUNet
from style_aligned import StyleAlignedAdapter

adapter, durations = StyleAlignedAdapter(SDXLUNet(in_channels=4, device="meta")), []
for _ in range(5):
    start = time.process_time()
    adapter.inject()
    adapter.eject()
    durations.append(time.process_time() - start)
print(min(durations))
"""


def test_inject_and_eject_are_fast() -> None:
    # in a process of its own, where annotations are not executed
    output = subprocess.run([sys.executable, "-c", FAST], capture_output=True, text=True, check=True).stdout
    assert float(output) < 0.2
