"""StyleAligned as an adapter: what can be set, how it goes into a model, and how it comes out."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Generic, Literal, TypeVar

import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.adapters import Adapter
from refiners.foundationals.latent_diffusion import SD1UNet, SDXLUNet
from refiners.foundationals.latent_diffusion.style_aligned import StyleAligned as RefinersStyleAligned
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from typing_extensions import Unpack

from style_aligned.adapter.group_norm import GroupNorm
from style_aligned.adapter.reference_bank import ReferenceBank
from style_aligned.adapter.residuals import reset_residuals
from style_aligned.adapter.self_attention import (
    AttentionAdapter,
    FullySharedAttentionAdapter,
    SharedAttentionAdapter,
    find_attention,
    find_self_attentions,
    only_self,
    walk,
)
from style_aligned.adapter.sharing import CONTEXT, Sharing
from style_aligned.options import OPTIONS, AdapterOptions, check_options

FIXED = [name for name, option in OPTIONS.items() if not option.changeable]
"""The options that decide which layers there are."""

T = TypeVar("T", bound=fl.Chain)
TStyleAlignedAdapter = TypeVar("TStyleAlignedAdapter", bound="StyleAlignedAdapter[Any]")  # Self (see PEP 673)


class StyleAlignedAdapter(Generic[T], fl.Chain, Adapter[T]):
    """Make the images of a set share the style of the first one, the reference.

    See [[arXiv:2312.02133] Style Aligned Image Generation via Shared Attention](https://arxiv.org/abs/2312.02133).

    A batch holds groups of `set_size` consecutive rows, each starting with its reference. With classifier-free guidance
    the two halves of the batch are groups of their own: for one set of 4 images, 8 rows and `set_size=4`, or `None`.

    Options are attributes too. Those that decide which layers there are (`FIXED`) are set before `inject`, the others
    at any time.

    Example:
        ```py
        chain = fl.Chain(fl.SelfAttention(embedding_dim=64, num_heads=4))
        features = torch.randn(6, 16, 64)  # two sets of three images, without guidance
        plain = chain(features)

        with StyleAlignedAdapter(chain, set_size=3) as adapter:
            aligned = chain(features)
            adapter.strength = 0
            assert torch.equal(chain(features), plain)

        assert torch.equal(aligned[[0, 3]], plain[[0, 3]])  # the references
        assert not torch.allclose(aligned[[1, 2, 4, 5]], plain[[1, 2, 4, 5]])  # the targets
        ```
    """

    def __init__(self, target: T, **options: Unpack[AdapterOptions]) -> None:
        """Initialize the StyleAlignedAdapter.

        Args:
            target: The model to adapt: an `SDXLUNet`, an `SD1UNet`, or any chain that holds self-attentions.
            options: The options, which [`AdapterOptions`][style_aligned.options.AdapterOptions] declares.

        Raises:
            TypeError: If the target is not a chain, or an option is not of its type.
            ValueError: If the target holds nothing to share or is adapted already, or an option is unknown, out of its
                range or excluded by another.
        """
        if not isinstance(target, fl.Chain):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"expected a target that is a Chain, such as an SDXLUNet, got a {type(target).__name__}")
        check_options(options)
        given: dict[str, Any] = {**{name: option.default for name, option in OPTIONS.items()}, **options}
        self._options = {name: given[name] for name in FIXED}
        self._sharing = Sharing()
        for name in OPTIONS.keys() - FIXED:
            setattr(self._sharing, name, given[name])

        with self.setup_adapter(target):
            super().__init__(target)
        self._check_target()
        self._is_injected = False
        self._adapters: list[AttentionAdapter | GroupNorm] = []
        self._hooks: list[RemovableHandle] = []
        self._checked_rows: int | None = None

    def __getattr__(self, name: str) -> Any:
        if name not in OPTIONS:
            return super().__getattr__(name)
        return self._options[name] if name in FIXED else getattr(self._sharing, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in OPTIONS:
            super().__setattr__(name, value)
            return
        check_options({**{name: getattr(self, name) for name in OPTIONS}, name: value})
        if name not in FIXED:
            setattr(self._sharing, name, value)
        elif self._is_injected:
            raise ValueError(f"expected {name} to be set before inject(), got it while injected: eject() first")
        else:
            self._options[name] = value
        self._checked_rows = None

    def inject(self: TStyleAlignedAdapter, parent: fl.Chain | None = None) -> TStyleAlignedAdapter:
        """Inject the adapter.

        Args:
            parent: The parent to inject the adapter into, if the target doesn't have a parent.

        Returns:
            The adapter.

        Raises:
            ValueError: If this adapter is injected already, if another one shares the layers of the target, or if the
                target is not in the parent. Nothing has changed then.
        """
        if self._is_injected:
            raise ValueError("this StyleAlignedAdapter is injected already: expected eject() before inject()")
        self._check_target()
        if parent is not None and parent.find_parent(self.target) is None:
            name = type(self.target).__name__
            raise ValueError(f"expected a parent that holds the {name}, got a {type(parent).__name__} that does not")

        self._adapters = [*self._adapt_attentions(), *self._adapt_group_norms()]
        for unet_type in (SD1UNet, SDXLUNet):
            for unet, _ in walk(self.target, unet_type):
                self._hooks.append(unet.register_forward_pre_hook(self._before_pass))
        super().inject(parent)
        self.set_context(CONTEXT, {"sharing": self._sharing})
        self._is_injected = True
        self._checked_rows = None
        return self

    def eject(self) -> None:
        """Eject the adapter.

        Raises:
            ValueError: If the adapter is not injected. Nothing has changed then.
        """
        if not self._is_injected:
            raise ValueError("this StyleAlignedAdapter is not injected: expected inject() before eject()")
        for adapter in self._adapters:
            adapter.eject()
        for hook in self._hooks:
            hook.remove()
        chains: list[fl.Chain] = [self, self.target, *self.target.layers(fl.Chain, recurse=True)]
        for chain in chains:
            chain.provider.contexts.pop(CONTEXT, None)
        reset_residuals(self.target)
        super().eject()
        self._adapters, self._hooks, self._is_injected = [], [], False

    def __enter__(self: TStyleAlignedAdapter) -> TStyleAlignedAdapter:
        return self if self._is_injected else self.inject()

    def __exit__(self, *_: object) -> None:
        if self._is_injected:  # an exception in the block may be the reason that it is not
            self.eject()

    @contextmanager
    def record(self, bank: ReferenceBank) -> Generator[None, None, None]:
        """Make the target take references alone, and record what targets need of them.

        Each row of a batch is a reference then: for one set, its two guidance halves. They come out as they do without
        the adapter, since a reference does not attend to its targets.

        Args:
            bank: Where to record.

        Raises:
            ValueError: If the adapter is not injected, if this is inside of another `record` or `replay`, or if
                `full_attention_share` is set: references attend to their targets then.

        Example:
            ```py
            chain = fl.Chain(fl.SelfAttention(embedding_dim=64, num_heads=4))
            features = torch.randn(3, 16, 64)
            adapter = StyleAlignedAdapter(chain, set_size=3).inject()
            aligned = chain(features)

            bank = ReferenceBank()
            with adapter.record(bank):
                chain(features[:1])
            with adapter.replay(bank):
                assert torch.allclose(chain(features[2:]), aligned[2:], atol=1e-5)
            ```
        """
        self._check_mode("record")
        bank.start(self.target, self._options)
        with self._in_mode("record", bank):
            yield

    @contextmanager
    def replay(self, bank: ReferenceBank) -> Generator[None, None, None]:
        """Make the target take targets alone, which share the references that were recorded.

        A batch holds as many consecutive rows for each of the recorded ones, in their order. They may be of another
        size than the references.

        Args:
            bank: What was recorded.

        Raises:
            ValueError: As for `record`, or if the bank is empty, or was recorded with another target or other options.
        """
        self._check_mode("replay")
        bank.check_recorded(self.target, self._options)
        with self._in_mode("replay", bank):
            yield

    def _check_mode(self, mode: str) -> None:
        if not self._is_injected:
            raise ValueError(f"this StyleAlignedAdapter is not injected: expected inject() before {mode}()")
        if self.full_attention_share:
            raise ValueError(
                f"expected full_attention_share=False to {mode} references, got True: they attend to their targets"
                " then, and cannot go before them"
            )
        if self._sharing.mode != "batch":
            raise ValueError(f"expected {mode}() outside of {self._sharing.mode}(), got it inside")

    @contextmanager
    def _in_mode(self, mode: Literal["record", "replay"], bank: ReferenceBank) -> Generator[None, None, None]:
        self._sharing.mode, self._sharing.bank = mode, bank
        try:
            yield
        finally:
            self._sharing.mode, self._sharing.bank = "batch", ReferenceBank()

    def _check_target(self) -> None:
        """Check that the target holds something to share, and nothing that is shared already."""
        name = type(self.target).__name__
        layers: list[Any] = [*self.target.get_parents(), *self.target.modules()]
        for layer in layers:
            kind = type(layer).__name__
            if isinstance(layer, StyleAlignedAdapter | AttentionAdapter | GroupNorm | RefinersStyleAligned):
                raise ValueError(
                    f"expected a target that no StyleAlignedAdapter is injected in, got a {name} with a"
                    f" {kind} already: eject the other adapter first"
                )
        self_attentions = find_self_attentions(self.target)
        if not self_attentions and not (self.share_group_norm and any(walk(self.target, fl.GroupNorm))):
            kinds = "self-attention or group normalization" if self.share_group_norm else "self-attention"
            raise ValueError(f"expected a target with at least one {kinds}, got a {name} with none")
        for self_attention in self_attentions:
            find_attention(self_attention)

    def _adapt_attentions(self) -> list[AttentionAdapter]:
        """Inject a sub-adapter into every self-attention that shares."""
        adapters: list[AttentionAdapter] = []
        names = ("adain_queries", "adain_keys", "adain_values", "share_attention")
        options: dict[str, Any] = {name: self._options[name] for name in names}
        self_attentions = find_self_attentions(self.target) if any(options.values()) else []
        alone = only_self(len(self_attentions), level=self.only_self_level)
        for index, self_attention in enumerate(self_attentions):
            attention = find_attention(self_attention)
            if alone[index]:
                continue
            if self.full_attention_share:
                adapter = FullySharedAttentionAdapter(attention)
            else:
                adapter = SharedAttentionAdapter(attention, f"self_attention_{index}", **options)
            adapters.append(adapter.inject(self_attention))
        return adapters

    def _adapt_group_norms(self) -> list[GroupNorm]:
        """Put a shared normalization in place of every one, if they are to be shared."""
        shared: list[GroupNorm] = []
        if self.share_group_norm:
            for index, (group_norm, parent) in enumerate(list(walk(self.target, fl.GroupNorm))):
                shared.append(GroupNorm(group_norm, f"group_norm_{index}"))
                parent.replace(group_norm, shared[-1])
        return shared

    def _before_pass(self, unet: fl.Chain, inputs: tuple[Tensor]) -> None:
        """Have a U-Net begin a pass as a fresh one, and check the rows of its input before anything is computed.

        Raises:
            ValueError: If the latents are not of rank 4, if their rows are not laid out as `set_size` says, or if
                targets do not fit the references that were recorded.
        """
        reset_residuals(unet)
        x, sharing = inputs[0], self._sharing
        if x.ndim != 4:
            raise ValueError(
                "expected latents of rank 4 (rows, channels, height, width), got a tensor of"
                f" rank {x.ndim} and shape {tuple(x.shape)}"
            )
        if sharing.mode == "batch":
            sharing.group_size(len(x))
            if len(x) != self._checked_rows:  # once: looking at latents makes a GPU wait
                check_halves(x, sharing.set_size)
                self._checked_rows = len(x)
        elif sharing.mode == "record":
            sharing.bank.latents_shape = x.shape
        else:
            sharing.bank.check_targets(x)


def check_halves(x: Tensor, set_size: int | None) -> None:
    """Check that `set_size` does not take guidance halves for sets, or sets for guidance halves.

    Args:
        x: The latents.
        set_size: The number of images in a set, the reference included. None means that the batch holds the two
            guidance halves of a single set.

    Raises:
        ValueError: If `set_size` is None and the halves of the batch differ (it is no classifier-free guidance batch of
            one set), or if it is one and `set_size` takes both halves for a set.
    """
    are_equal = len(x) % 2 == 0 and torch.equal(*x.chunk(2))
    if set_size is None and not are_equal:
        raise ValueError(
            f"got a batch of {len(x)} rows whose halves differ, expected the same latents twice, as in"
            " classifier-free guidance with one set: without guidance, or for several sets in one batch, give the"
            " adapter a set_size"
        )
    if set_size == len(x) and are_equal and not (x == x[:1]).all():
        raise ValueError(
            f"got a batch of {len(x)} rows whose halves are equal, as in classifier-free guidance, and a set_size"
            f" of {set_size}: expected {len(x) // 2}, or targets would follow the other half's reference"
        )
