import json
import subprocess
import sys
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

from style_aligned import StyleAligned, StyleAlignedAdapter
from style_aligned.adapter.shared import SharedGroupNorm, SharedScaledDotProductAttention
from style_aligned.adapter.sites import only_self
from tests.chains import blocks, features, meta_unet, run, snapshot
from tests.oracle import relative_error

GOLDEN = Path(__file__).parents[1] / "golden"
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


@pytest.mark.usefixtures("both_ways_to_normalize")
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


@pytest.mark.usefixtures("both_ways_to_normalize")
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


@pytest.mark.slow
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
