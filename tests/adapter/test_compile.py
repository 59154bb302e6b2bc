"""Adapted models compile, also while references are recorded and replayed."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

CHAIN = """
import torch
from refiners.fluxion import layers as fl
from style_aligned import ReferenceBank, StyleAlignedAdapter

torch.set_grad_enabled(False)
chain = fl.Chain(fl.GroupNorm(channels=8, num_groups=2), fl.SelfAttention(16), fl.SelfAttention(16))
adapter, bank = StyleAlignedAdapter(chain, shift=0.5, share_group_norm=True).inject(), ReferenceBank()
compiled = torch.compile(chain, backend="aot_eager", fullgraph=True)
for rows in (6, 4):
    x = torch.randn(rows, 8, 16)
    torch.testing.assert_close(compiled(x), chain(x))
adapter.strength = 2.0
torch.testing.assert_close(compiled(x), chain(x))
for _ in range(2):
    with adapter.record(bank):
        torch.testing.assert_close(compiled(x[:2]), chain(x[:2]))
        x = torch.randn(4, 8, 16)
        compiled(x[:2])
    with adapter.replay(bank):
        replayed = compiled(x)
        with torch.compiler.set_stance("force_eager"):
            torch.testing.assert_close(compiled(x), replayed)
print("compiled")
"""

UNET = """
import torch
from style_aligned import ReferenceBank, StyleAlignedAdapter
from style_aligned.models.mini import MiniUNet

torch.manual_seed(0)
unet, bank = MiniUNet().requires_grad_(False), ReferenceBank()

def run(unet, rows=(0, 1, 2, 3, 4, 5)):
    torch.manual_seed(1)
    rows = list(rows)
    unet.set_timestep(torch.tensor([601]))
    unet.set_clip_text_embedding(torch.randn(6, 32, 128)[rows])
    unet.set_pooled_text_embedding(torch.randn(6, 64)[rows])
    unet.set_time_ids(torch.tensor([[256.0, 256, 0, 0, 256, 256]]).repeat(len(rows), 1))
    return unet(torch.randn(3, 4, 16, 16).repeat(2, 1, 1, 1)[rows])

plain = run(unet)
adapter = StyleAlignedAdapter(unet, shift=0.5).inject()
aligned = run(unet)
compiled = torch.compile(unet, backend="aot_eager")
torch.testing.assert_close(run(compiled), aligned, rtol=1e-4, atol=1e-4)
assert not torch.allclose(aligned, plain, rtol=1e-3, atol=1e-3)
for _ in range(2):
    with adapter.record(bank):
        run(compiled, (0, 3))
    with adapter.replay(bank):
        replayed = run(compiled, (1, 4))
    torch.testing.assert_close(replayed, aligned[[1, 4]], rtol=1e-4, atol=1e-4)
print("compiled")
"""


@pytest.mark.parametrize("program", [CHAIN, UNET], ids=["chain", "unet"])
def test_an_adapted_model_compiles(program: str) -> None:
    # in a process of its own, where annotations are not executed
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert process.stdout == "compiled\n", process.stderr
