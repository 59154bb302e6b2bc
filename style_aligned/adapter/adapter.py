"""StyleAligned as an adapter: what can be set, how it goes into a model, and how it comes out."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from refiners.fluxion import layers as fl
from refiners.fluxion.adapters import Adapter
from refiners.foundationals.latent_diffusion import SD1UNet, SDXLUNet
from torch import Tensor

from style_aligned.adapter.checks import check_rows
from style_aligned.adapter.layers import GetReferences, ScaleReferences
from style_aligned.adapter.reference_bank import RecordReferences, ReferenceBank, ReplayReferences
from style_aligned.adapter.shared import FullySharedScaledDotProductAttention, SharedScaledDotProductAttention
from style_aligned.adapter.sites import (
    Mode,
    Site,
    check_target,
    find_self_attentions,
    fully_shared_site,
    group_norm_site,
    only_self,
    self_attention_site,
    walk,
)
from style_aligned.options import OPTIONS, check_options

FIXED = tuple(name for name, option in OPTIONS.items() if not option.changeable)  # they decide which layers are built

T = TypeVar("T", bound=fl.Chain)
TStyleAlignedAdapter = TypeVar("TStyleAlignedAdapter", bound="StyleAlignedAdapter[Any]")  # Self (see PEP 673)


class StyleAlignedAdapter(Generic[T], fl.Chain, Adapter[T]):
    """Make the images of a set share the style of the first one, the reference.

    See [[arXiv:2312.02133] Style Aligned Image Generation via Shared Attention](https://arxiv.org/abs/2312.02133).

    A batch holds groups of `set_size` consecutive rows, each starting with its reference. With classifier-free guidance
    the two halves of the batch are groups of their own: for one set of 4 images, 8 rows and `set_size=4`, or `None`.

    Example:
        ```py
        chain = fl.Chain(fl.SelfAttention(embedding_dim=64, num_heads=4))
        features = torch.randn(6, 16, 64)  # two sets of three images, without guidance
        plain = chain(features)

        adapter = StyleAlignedAdapter(chain, set_size=3).inject()
        aligned = chain(features)
        adapter.eject()

        assert torch.equal(aligned[[0, 3]], plain[[0, 3]])  # the references
        assert not torch.allclose(aligned[[1, 2, 4, 5]], plain[[1, 2, 4, 5]])  # the targets
        ```

    In a `with` statement it is injected, and ejected at the end.

    Note:
        Adapters that insert layers right before the attention, such as self-attention guidance, go in first.
    """

    def __init__(
        self,
        target: T,
        *,
        adain_queries: bool = True,
        adain_keys: bool = True,
        adain_values: bool = False,
        share_attention: bool = True,
        full_attention_share: bool = False,
        share_group_norm: bool = False,
        scale: float = 1.0,
        shift: float = 0.0,
        only_self_level: float = 0.0,
        set_size: int | None = None,
    ) -> None:
        """Initialize the StyleAlignedAdapter.

        Args:
            target: The model to adapt: an `SDXLUNet`, an `SD1UNet`, or any chain that holds self-attentions.
            adain_queries: Whether to normalize the targets' queries to the reference's.
            adain_keys: Whether to normalize the targets' keys to the reference's.
            adain_values: Whether to normalize the targets' values to the reference's.
            share_attention: Whether the targets attend to the reference.
            full_attention_share: Whether all rows of a group attend to all of them. There is no normalization then, as
                in Google's implementation: `adain_queries` and `adain_keys` have no effect.
            share_group_norm: Whether each group normalization takes its statistics over row and reference together.
            scale: The factor for the reference's keys, Google's `shared_score_scale`. It can be changed while injected.
            shift: What is added to the scores of the reference's keys, Google's `shared_score_shift`: `log(2)` makes
                the reference count twice. It can be changed while injected.
            only_self_level: The fraction of self-attentions to leave alone, spread evenly and counted as diffusers
                does: down, up, then middle blocks. It is rounded as Google's `_get_switch_vec` does: of SDXL's 70, from
                0.35 to 0.65 leaves every second one alone.
            set_size: The number of images in a set, the reference included. None means that a batch holds the two
                guidance halves of one set. It can be changed while injected.

        Raises:
            TypeError: If the target is not a chain, or an option is not of its type.
            ValueError: If the target holds nothing to share or is adapted already, or an option is out of its range or
                excluded by another.
        """
        if not isinstance(target, fl.Chain):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"expected a target that is a Chain, such as an SDXLUNet, got a {type(target).__name__}")
        check_options(
            {
                "adain_queries": adain_queries,
                "adain_keys": adain_keys,
                "adain_values": adain_values,
                "share_attention": share_attention,
                "full_attention_share": full_attention_share,
                "share_group_norm": share_group_norm,
                "scale": scale,
                "shift": shift,
                "only_self_level": only_self_level,
                "set_size": set_size,
            }
        )

        self.adain_queries = adain_queries
        self.adain_keys = adain_keys
        self.adain_values = adain_values
        self.share_attention = share_attention
        self.full_attention_share = full_attention_share
        self.share_group_norm = share_group_norm
        self.only_self_level = only_self_level
        self._scale = scale
        self._shift = shift
        self._set_size = set_size

        with self.setup_adapter(target):
            super().__init__(target)
        check_target(target, share_group_norm=share_group_norm)
        self._is_injected = False
        self._sites: list[Site] = []
        self._check_input = [fl.Lambda(self.check_input)]
        self._mode: Mode = "batch"
        self._bank: ReferenceBank | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FIXED and self.__dict__.get("_is_injected", False):
            raise ValueError(f"expected {name} to be set before inject(), got it while injected: eject() first")
        super().__setattr__(name, value)

    @property
    def scale(self) -> float:
        """The factor for the reference's keys."""
        return self._scale

    @scale.setter
    def scale(self, scale: float) -> None:
        self._check_options(scale=scale)
        self._scale = scale
        self._apply_options()

    @property
    def shift(self) -> float:
        """What is added to the scores of the reference's keys."""
        return self._shift

    @shift.setter
    def shift(self, shift: float) -> None:
        self._check_options(shift=shift)
        self._shift = shift
        self._apply_options()

    @property
    def set_size(self) -> int | None:
        """The number of images in a set, the reference included."""
        return self._set_size

    @set_size.setter
    def set_size(self, set_size: int | None) -> None:
        self._check_options(set_size=set_size)
        self._set_size = set_size
        self._apply_options()

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
        check_target(self.target, share_group_norm=self.share_group_norm)
        if any(isinstance(ancestor, StyleAlignedAdapter) for ancestor in self.target.get_parents()):
            raise ValueError(
                "expected a target that no StyleAlignedAdapter is injected in, got one in another StyleAlignedAdapter:"
                " eject the other adapter first"
            )
        if parent is not None and parent.find_parent(self.target) is None:
            name = type(self.target).__name__
            raise ValueError(f"expected a parent that holds the {name}, got a {type(parent).__name__} that does not")

        self._sites = self._build_sites()
        self._is_injected = True
        try:
            for site in self._sites:
                site.inject()
            self._apply_options()
            for unet in self._find_unets():
                unet.insert(0, self._check_input[0])
            return super().inject(parent)
        except BaseException:  # an interruption too
            self.eject()
            raise

    def eject(self) -> None:
        """Eject the adapter.

        Raises:
            ValueError: If the adapter is not injected. Nothing has changed then.
        """
        if not self._is_injected:
            raise ValueError("this StyleAlignedAdapter is not injected: expected inject() before eject()")
        for site in self._sites:
            site.eject()
        for unet in self._find_unets():
            if any(layer is self._check_input[0] for layer in unet):
                unet.remove(self._check_input[0])
        if any(parent is self for parent in self.target.get_parents()):  # not, if the injection was interrupted
            super().eject()
        self._sites = []
        self._is_injected = False

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
        with self._in_mode("record", bank):
            yield

    @contextmanager
    def replay(self, bank: ReferenceBank) -> Generator[None, None, None]:
        """Make the target take targets alone, which share the references that were recorded.

        A batch holds as many consecutive rows for each of the recorded ones, in their order.

        Args:
            bank: What was recorded.

        Raises:
            ValueError: As for `record`, or if the bank was recorded with another target or other options.
        """
        with self._in_mode("replay", bank):
            yield

    def check_input(self, x: Tensor) -> Tensor:
        """Check that the rows of a U-Net's input are laid out as `set_size` says, before anything is computed.

        Args:
            x: The latents, of shape (rows, channels, height, width).

        Returns:
            The latents, as they are.

        Raises:
            ValueError: If the latents are not of rank 4, if their rows cannot be split into sets, if `set_size` is None
                and the two halves of the batch differ (it is no classifier-free guidance batch of one set), if it is
                one and `set_size` takes both halves for a set, if targets do not fit the references that were recorded,
                or if another adapter has put a layer between this one's and the attention since.
        """
        for site in self._sites:
            site.check_order()
        if x.ndim != 4:
            raise ValueError(
                "expected latents of rank 4 (rows, channels, height, width), got a tensor of"
                f" rank {x.ndim} and shape {tuple(x.shape)}"
            )
        match self._mode, self._bank:
            case "record", ReferenceBank() as bank:
                bank.latents_shape = x.shape
            case "replay", ReferenceBank() as bank:
                bank.check_targets(x)
            case _:
                check_rows(x, self.set_size)
        return x

    def _check_options(self, **changes: Any) -> None:
        """Check a change of options beside the others."""
        check_options({**{name: getattr(self, name) for name in OPTIONS}, **changes})

    def _find_unets(self) -> list[fl.Chain]:
        return [unet for unet_type in (SD1UNet, SDXLUNet) for unet, _ in walk(self.target, unet_type)]

    def _build_sites(self) -> list[Site]:
        """Build the layers for every self-attention and group normalization that shares."""
        sites: list[Site] = []
        self_attentions = find_self_attentions(self.target)
        alone = only_self(len(self_attentions), level=self.only_self_level)
        is_active = self.share_attention or self.adain_queries or self.adain_keys or self.adain_values
        for index, self_attention in enumerate(self_attentions):
            if alone[index] or not is_active:
                continue
            if self.full_attention_share:
                sites.append(fully_shared_site(self_attention))
                continue
            sites.append(
                self_attention_site(
                    self_attention,
                    key=f"self_attention_{index}",
                    adain_queries=self.adain_queries,
                    adain_keys=self.adain_keys,
                    adain_values=self.adain_values,
                    share=self.share_attention,
                )
            )
        if self.share_group_norm:
            for index, (group_norm, parent) in enumerate(walk(self.target, fl.GroupNorm)):
                sites.append(group_norm_site(group_norm, parent, key=f"group_norm_{index}"))
        return sites

    @contextmanager
    def _in_mode(self, mode: Mode, bank: ReferenceBank) -> Generator[None, None, None]:
        if not self._is_injected:
            raise ValueError(f"this StyleAlignedAdapter is not injected: expected inject() before {mode}()")
        if self.full_attention_share:
            raise ValueError(
                f"expected full_attention_share=False to {mode} references, got True: they attend to their targets"
                " then, and cannot go before them"
            )
        if self._mode != "batch":
            raise ValueError(f"expected {mode}() outside of {self._mode}(), got it inside")
        options = {name: getattr(self, name) for name in FIXED}
        if mode == "record":
            bank.start(self.target, options)
        else:
            bank.check_recorded(self.target, options)
        try:
            for site in self._sites:
                site.set_mode(mode)
            self._mode, self._bank = mode, bank
            self._apply_options()
            yield
        finally:
            self._mode, self._bank = "batch", None
            for site in self._sites:
                site.set_mode("batch")
                for layer in site.layers():
                    if isinstance(layer, RecordReferences | ReplayReferences):
                        layer.bank = None  # what it holds is the caller's to keep, or to free

    def _apply_options(self) -> None:
        """Tell the layers in the target what can change while they are there."""
        for layer in (layer for site in self._sites for layer in site.layers()):
            match layer:
                case ScaleReferences():
                    layer.scale = self.scale
                case SharedScaledDotProductAttention():
                    layer.shift, layer.set_size = self.shift, self.set_size
                case GetReferences() | FullySharedScaledDotProductAttention():
                    layer.set_size = self.set_size
                case RecordReferences() | ReplayReferences() if self._bank is not None:
                    layer.bank = self._bank
                case _:
                    pass
