import gc
import weakref
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.layers.chain import ChainError
from torch import Tensor

from style_aligned import StyleAlignedAdapter
from style_aligned.adapter.reference_bank import ReferenceBank
from tests.chains import Blocks, blocks, features, run, snapshot

OPTIONS: list[dict[str, Any]] = [
    {},
    {"scale": 0.5, "shift": 0.7},
    {"share_group_norm": True},
    {"share_attention": False},
    {"adain_queries": False, "adain_keys": False},
    {"adain_values": True, "only_self_level": 0.5},
    {"strength": 0.3, "share_group_norm": True},
    {"strength": 2.5, "share_group_norm": True},
]


def run_rows(chain: Blocks, x: Tensor, rows: list[int]) -> Tensor:
    """Run some rows of a batch of 8, each with the prompt that it has there."""
    chain.set_context("blocks", {"prompt": features(8, 5, 16, seed=7)[rows]})
    return chain(x[rows])


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("device", [None, "cpu"])
def test_replay_equals_the_batch(options: dict[str, Any], device: str | None) -> None:
    chain, x = blocks(), features(8, 10, 16)
    adapter = StyleAlignedAdapter(chain, **options).inject()
    expected = run(chain, x)

    bank = ReferenceBank(device=device)
    with adapter.record(bank):
        recorded = run_rows(chain, x, [0, 4])
    torch.testing.assert_close(recorded, expected[[0, 4]], rtol=1e-5, atol=1e-6)
    for rows in ([1, 5], [2, 3, 6, 7], [3, 7]):
        with adapter.replay(bank):
            torch.testing.assert_close(run_rows(chain, x, rows), expected[rows], rtol=1e-5, atol=1e-6)
    assert torch.equal(run(chain, x), expected)


@torch.no_grad()
def test_a_recorded_reference_comes_out_as_without_the_adapter() -> None:
    chain, x = blocks(), features(8, 10, 16)
    before = run_rows(chain, x, [0, 4])
    with StyleAlignedAdapter(chain, share_group_norm=True) as adapter, adapter.record(ReferenceBank()):
        assert torch.equal(run_rows(chain, x, [0, 4]), before)


@torch.no_grad()
def test_options_that_change_reach_the_replay() -> None:
    chain, x = blocks(), features(8, 10, 16)
    adapter, bank = StyleAlignedAdapter(chain).inject(), ReferenceBank()
    with adapter.record(bank):
        run_rows(chain, x, [0, 4])
    with adapter.replay(bank):
        before = run_rows(chain, x, [1, 5])
    adapter.scale, adapter.shift = 0.5, 0.7
    expected = run(chain, x)
    with adapter.replay(bank):
        after = run_rows(chain, x, [1, 5])
    torch.testing.assert_close(after, expected[[1, 5]], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(after, before, rtol=1e-3)


@torch.no_grad()
def test_a_bank_holds_one_step_and_as_little_as_it_can() -> None:
    chain, x = blocks(), features(8, 10, 16)
    bank = ReferenceBank()
    with StyleAlignedAdapter(chain) as adapter, adapter.record(bank):
        for _ in range(3):
            run_rows(chain, x, [0, 4])
    keys_and_values, moments_of_queries_and_keys = 2 * (2 * 10 * 16), 2 * (2 * 2 * 16)
    assert len(bank) == 2 * 3, "queries, keys and values of two self-attentions"
    assert bank.nbytes == 2 * 4 * (keys_and_values + moments_of_queries_and_keys)


@torch.no_grad()
def test_the_tree_stays_while_references_are_recorded_and_replayed() -> None:
    chain, x, bank = blocks(), features(8, 10, 16), ReferenceBank()
    with StyleAlignedAdapter(chain, share_group_norm=True) as adapter:
        run(chain, x)
        injected, keys = [line[:2] for line in snapshot(chain)], list(chain.state_dict())
        for mode, rows in ((adapter.record, [0, 4]), (adapter.replay, [1, 5])):
            with mode(bank):
                run_rows(chain, x, rows)
                assert [line[:2] for line in snapshot(chain)] == injected
                assert list(chain.state_dict()) == keys
        assert [line[:2] for line in snapshot(chain)] == injected


@torch.no_grad()
def test_eject_leaves_no_trace_after_a_replay() -> None:
    chain, x = blocks(), features(8, 10, 16)
    expected, before, keys = run(chain, x), snapshot(chain), list(chain.state_dict())
    adapter, bank = StyleAlignedAdapter(chain, share_group_norm=True).inject(), ReferenceBank()
    with adapter.record(bank):
        run_rows(chain, x, [0, 4])
    with pytest.raises(RuntimeError, match="in the middle"), adapter.replay(bank):
        raise RuntimeError("in the middle")
    with adapter.replay(bank):
        adapter.eject()
    assert [line[:2] for line in snapshot(chain)] == [line[:2] for line in before]
    assert list(chain.state_dict()) == keys
    assert torch.equal(run(chain, x), expected)


def test_full_sharing_cannot_be_recorded() -> None:
    chain = blocks()
    adapter = StyleAlignedAdapter(chain, full_attention_share=True).inject()
    before = snapshot(chain)
    with pytest.raises(ValueError, match=r"full_attention_share=False to record .* attend to their targets"):
        adapter.record(ReferenceBank()).__enter__()
    assert snapshot(chain) == before


def test_modes_out_of_order() -> None:
    chain = blocks()
    adapter = StyleAlignedAdapter(chain)
    with pytest.raises(ValueError, match=r"not injected: expected inject\(\) before record\(\)"):
        adapter.record(ReferenceBank()).__enter__()
    adapter.inject()
    with adapter.record(ReferenceBank()), pytest.raises(ValueError, match=r"expected replay\(\) outside of record\(\)"):
        adapter.replay(ReferenceBank()).__enter__()
    with pytest.raises(ValueError, match="expected a bank that has recorded its references, got an empty one"):
        adapter.replay(ReferenceBank()).__enter__()


def test_keys_are_found_in_a_chain_that_is_a_self_attention() -> None:
    chain, x = fl.SelfAttention(embedding_dim=16, num_heads=2), features(4, 10, 16)
    with torch.no_grad(), StyleAlignedAdapter(chain) as adapter:
        expected, bank = chain(x), ReferenceBank()
        with adapter.record(bank):
            chain(x[[0, 2]])
        with adapter.replay(bank):
            torch.testing.assert_close(chain(x[[1, 3]]), expected[[1, 3]], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_bank_of_other_options_or_rows() -> None:
    chain, x, bank = blocks(), features(8, 10, 16), ReferenceBank()
    with StyleAlignedAdapter(chain, share_attention=False, adain_values=True) as adapter, adapter.record(bank):
        run_rows(chain, x, [0, 4])
    with StyleAlignedAdapter(chain) as adapter:
        with pytest.raises(ValueError, match="got one with other adain_values, share_attention"):
            adapter.replay(bank).__enter__()
        with adapter.record(bank):  # forgets what was there
            run_rows(chain, x, [0, 4])
        with adapter.replay(bank):
            for rows in ([1], [1, 2, 5]):
                with pytest.raises(ChainError, match=f"got a batch of {len(rows)} targets, expected"):
                    run_rows(chain, x, rows)
            assert len(run_rows(chain, x, [1, 5])) == 2
    adapter.adain_values = True
    with adapter, pytest.raises(ValueError, match="got one with other adain_values"):
        adapter.replay(bank).__enter__()


@torch.no_grad()
def test_a_bank_is_the_callers_alone() -> None:
    chain, x, bank = blocks(), features(8, 10, 16), ReferenceBank()
    with StyleAlignedAdapter(chain, share_group_norm=True) as adapter:
        with adapter.record(bank):
            run_rows(chain, x, [0, 4])
        with adapter.replay(bank):
            run_rows(chain, x, [1, 5])
        remembered = weakref.ref(bank)
        del bank
        gc.collect()
        assert remembered() is None


@torch.no_grad()
def test_a_bank_of_another_target() -> None:
    chain, x, bank = blocks(), features(8, 10, 16), ReferenceBank()
    with StyleAlignedAdapter(chain) as adapter, adapter.record(bank):
        run_rows(chain, x, [0, 4])
    with (
        StyleAlignedAdapter(blocks()) as other,
        pytest.raises(ValueError, match="with this target, got one of another"),
    ):
        other.replay(bank).__enter__()
    with StyleAlignedAdapter(chain) as adapter, adapter.replay(bank):
        run_rows(chain, x, [1, 5])
