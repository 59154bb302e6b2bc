"""Where the layers of StyleAligned go in a model, and how they come out."""

import math
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.adapters import Adapter
from refiners.foundationals.latent_diffusion import SD1UNet, SDXLUNet
from refiners.foundationals.latent_diffusion.stable_diffusion_1.unet import MiddleBlock as SD1MiddleBlock
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.unet import MiddleBlock as SDXLMiddleBlock
from refiners.foundationals.latent_diffusion.style_aligned import StyleAligned as RefinersStyleAligned
from torch import Tensor

from style_aligned.layers import (
    FullySharedScaledDotProductAttention,
    GetReferences,
    ScaleReferences,
    SharedGroupNorm,
    SharedScaledDotProductAttention,
    StyleAligned,
    split_rows,
)

T = TypeVar("T", bound=fl.Chain)
TLayer = TypeVar("TLayer", bound=fl.Module)
TStyleAlignedAdapter = TypeVar("TStyleAlignedAdapter", bound="StyleAlignedAdapter[Any]")  # Self (see PEP 673)

SHARED_LAYERS = (
    StyleAligned,
    SharedScaledDotProductAttention,
    FullySharedScaledDotProductAttention,
    SharedGroupNorm,
    RefinersStyleAligned,
)


class StyleAlignedAdapter(Generic[T], fl.Chain, Adapter[T]):
    """Make the images of a set share the style of the first one, the reference.

    See [[arXiv:2312.02133] Style Aligned Image Generation via Shared Attention](https://arxiv.org/abs/2312.02133).

    A batch holds groups of `set_size` consecutive rows, each starting with its reference. With classifier-free guidance
    the two halves of the batch are groups of their own: for one set of 4 images, 8 rows and `set_size=4`, or `None`.

    Example:
        ```py
        sdxl = StableDiffusion_XL(device="cuda", dtype=torch.float16)
        style_aligned_adapter = StyleAlignedAdapter(sdxl.unet)
        style_aligned_adapter.inject()
        ```

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
                does: down, up, then middle blocks.
            set_size: The number of images in a set, the reference included. None means that a batch holds the two
                guidance halves of one set. It can be changed while injected.

        Raises:
            TypeError: If the target is not a chain, or an option is not of its type.
            ValueError: If the target holds nothing to share, or an option is out of its range or excluded by another.
        """
        if not isinstance(target, fl.Chain):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"expected a target that is a Chain, such as an SDXLUNet, got a {type(target).__name__}")
        for name, option in (
            ("adain_queries", adain_queries),
            ("adain_keys", adain_keys),
            ("adain_values", adain_values),
            ("share_attention", share_attention),
            ("full_attention_share", full_attention_share),
            ("share_group_norm", share_group_norm),
        ):
            if not isinstance(option, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"expected {name} to be True or False, got {option!r}")
        _check_number("only_self_level", only_self_level, minimum=0.0, maximum=1.0)

        self.adain_queries = adain_queries
        self.adain_keys = adain_keys
        self.adain_values = adain_values
        self.share_attention = share_attention
        self.full_attention_share = full_attention_share
        self.share_group_norm = share_group_norm
        self.only_self_level = only_self_level
        self._check_options(scale=scale, shift=shift, set_size=set_size)
        self._scale = scale
        self._shift = shift
        self._set_size = set_size

        with self.setup_adapter(target):
            super().__init__(target)
        self._edits: list[tuple[fl.Chain, fl.Module, fl.Module]] = []  # (parent, what was there, what is there now)
        self._insertions: list[tuple[fl.Chain, fl.Module]] = []
        self._check_target()

    @property
    def scale(self) -> float:
        """The factor for the reference's keys."""
        return self._scale

    @scale.setter
    def scale(self, scale: float) -> None:
        self._check_options(scale=scale)
        self._scale = scale
        for layer in self._injected(ScaleReferences):
            layer.scale = scale

    @property
    def shift(self) -> float:
        """What is added to the scores of the reference's keys."""
        return self._shift

    @shift.setter
    def shift(self, shift: float) -> None:
        self._check_options(shift=shift)
        self._shift = shift
        for layer in self._injected(SharedScaledDotProductAttention):
            layer.shift = shift

    @property
    def set_size(self) -> int | None:
        """The number of images in a set, the reference included."""
        return self._set_size

    @set_size.setter
    def set_size(self, set_size: int | None) -> None:
        self._check_options(set_size=set_size)
        self._set_size = set_size
        for layer_type in (
            GetReferences,
            SharedScaledDotProductAttention,
            FullySharedScaledDotProductAttention,
            SharedGroupNorm,
        ):
            for layer in self._injected(layer_type):
                layer.set_size = set_size

    @property
    def injected(self) -> bool:
        """Whether the adapter is injected."""
        return len(self._edits) + len(self._insertions) > 0

    def inject(self: TStyleAlignedAdapter, parent: fl.Chain | None = None) -> TStyleAlignedAdapter:
        """Inject the adapter.

        Args:
            parent: The parent to inject the adapter into, if the target doesn't have a parent.

        Returns:
            The adapter.

        Raises:
            ValueError: If this adapter is injected already, or if another one shares the layers of the target. Nothing
                has changed then.
        """
        if self.injected:
            raise ValueError("this StyleAlignedAdapter is injected already: expected eject() before inject()")
        self._check_target()

        for self_attention in self._select_self_attentions():
            self._inject_self_attention(self_attention)
        if self.share_group_norm:
            for group_norm, norm_parent in list(_walk(self.target, fl.GroupNorm)):
                self._replace(norm_parent, group_norm, SharedGroupNorm(group_norm, set_size=self.set_size))
        if isinstance(self.target, SD1UNet | SDXLUNet):
            self._insert(self.target, 0, fl.Lambda(self.check_input))
        return super().inject(parent)

    def eject(self) -> None:
        """Eject the adapter.

        Raises:
            ValueError: If the adapter is not injected. Nothing has changed then.
        """
        if not self.injected:
            raise ValueError("this StyleAlignedAdapter is not injected: expected inject() before eject()")
        for parent, module in self._insertions:
            parent.remove(module)
        for parent, old_module, new_module in self._edits:
            parent.replace(new_module, old_module)
        self._insertions.clear()
        self._edits.clear()
        super().eject()

    def __enter__(self: TStyleAlignedAdapter) -> TStyleAlignedAdapter:
        return self if self.injected else self.inject()

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.eject()

    def check_input(self, x: Tensor) -> Tensor:
        """Check that the rows of a U-Net's input are laid out as `set_size` says, before anything is computed.

        Args:
            x: The latents, of shape (rows, channels, height, width).

        Returns:
            The latents, as they are.

        Raises:
            ValueError: If the latents are not of rank 4, if their rows cannot be split into sets, if `set_size` is None
                and the two halves of the batch differ (it is no classifier-free guidance batch of one set), or if
                another adapter has put a layer between this one's and the attention since.
        """
        for parent, module in self._insertions:
            self._check_order(parent, module)
        if x.ndim != 4:
            raise ValueError(
                "expected latents of rank 4 (rows, channels, height, width), got a tensor of"
                f" rank {x.ndim} and shape {tuple(x.shape)}"
            )
        split_rows(x.shape[0], self.set_size)
        if self.set_size is None and not torch.equal(*x.chunk(2)):
            raise ValueError(
                f"got a batch of {x.shape[0]} rows whose halves differ, expected the same latents twice, as in"
                " classifier-free guidance with one set: without guidance, or for several sets in one batch, give the"
                " adapter a set_size"
            )
        return x

    def _check_options(self, **changes: Any) -> None:
        """Check `scale`, `shift` and `set_size`, and what they go with."""
        if "scale" in changes:
            _check_number("scale", changes["scale"], minimum=0.0)
        if "shift" in changes:
            _check_number("shift", changes["shift"])
        set_size = changes.get("set_size")
        if set_size is not None:
            if not isinstance(set_size, int) or isinstance(set_size, bool):
                raise TypeError(f"expected set_size to be an integer or None, got {set_size!r}")
            if set_size < 1:
                raise ValueError(f"expected set_size to be at least 1, got {set_size}")
        if self.full_attention_share:
            excluded = {
                "share_attention": not self.share_attention,
                "adain_values": self.adain_values,
                "scale": changes.get("scale", 1) != 1,
                "shift": changes.get("shift", 0) != 0,
            }
            if names := [name for name, given in excluded.items() if given]:
                raise ValueError(
                    f"expected full_attention_share without any other way of sharing, got it with {', '.join(names)}"
                    " (all rows of a group attend to each other: nothing is normalized, scaled or shifted)"
                )

    def _check_target(self) -> None:
        """Check that the target holds something to share, and nothing that is shared already."""
        self_attentions = list(_walk(self.target, fl.SelfAttention))
        group_norms = list(_walk(self.target, fl.GroupNorm)) if self.share_group_norm else []
        if not self_attentions and not group_norms:
            kinds = "self-attention or group normalization" if self.share_group_norm else "self-attention"
            name = type(self.target).__name__
            raise ValueError(f"expected a target with at least one {kinds}, got a {name} with none")
        for self_attention, _ in self_attentions:
            attentions = [layer for layer in self_attention if isinstance(layer, fl.ScaledDotProductAttention)]
            if len(attentions) != 1 or attentions[0].is_causal:
                raise ValueError(
                    "expected self-attentions with one ScaledDotProductAttention that is not causal,"
                    f" got {self_attention.get_path()} in a {type(self.target).__name__}"
                )
        if shared := next((layer for layer_type in SHARED_LAYERS for layer, _ in _walk(self.target, layer_type)), None):
            raise ValueError(
                f"expected a target that no StyleAlignedAdapter is injected in, got a {type(self.target).__name__} that"
                f" holds a {type(shared).__name__} already: eject the other adapter first"
            )

    def _check_order(self, parent: fl.Chain, module: fl.Module) -> None:
        """Check that what this adapter put before an attention still stands right before it."""
        if not isinstance(parent, fl.SelfAttention):
            return
        layers = list(parent)
        following = layers[layers.index(module) + 1]
        if not isinstance(following, fl.ScaledDotProductAttention):
            raise ValueError(
                f"got a {type(following).__name__} between StyleAligned and the attention, expected adapters that"
                " insert layers there (such as self-attention guidance) to be injected first: eject the"
                " StyleAlignedAdapter, inject the other one, then inject it again"
            )

    def _select_self_attentions(self) -> list[fl.SelfAttention]:
        """Give the self-attentions that share, in the order in which diffusers counts them."""
        walked = [self_attention for self_attention, _ in _walk(self.target, fl.SelfAttention)]
        middle = {
            id(self_attention)
            for block_type in (SD1MiddleBlock, SDXLMiddleBlock)
            for block, _ in _walk(self.target, block_type)
            for self_attention, _ in _walk(block, fl.SelfAttention)
        }
        ordered = sorted(walked, key=lambda self_attention: id(self_attention) in middle)  # stable
        alone = only_self(len(ordered), level=self.only_self_level)
        return [self_attention for self_attention, is_alone in zip(ordered, alone, strict=True) if not is_alone]

    def _inject_self_attention(self, self_attention: fl.SelfAttention) -> None:
        attention = self_attention.ensure_find(fl.ScaledDotProductAttention)
        if self.full_attention_share:
            shared = FullySharedScaledDotProductAttention(attention, set_size=self.set_size)
            self._replace(self_attention, attention, shared)
            return

        share, set_size = self.share_attention, self.set_size
        aligned = (
            (self.adain_queries, StyleAligned(adain=self.adain_queries, share=False, set_size=set_size)),
            (
                self.adain_keys or share,
                StyleAligned(
                    adain=self.adain_keys, share=share, scale=self.scale if share else None, set_size=set_size
                ),
            ),
            (self.adain_values or share, StyleAligned(adain=self.adain_values, share=share, set_size=set_size)),
        )
        if any(is_active for is_active, _ in aligned):
            layers = fl.Distribute(*(layer if is_active else fl.Identity() for is_active, layer in aligned))
            self._insert(self_attention, list(self_attention).index(attention), layers)
        if share:
            shared = SharedScaledDotProductAttention(attention, shift=self.shift, set_size=set_size)
            self._replace(self_attention, attention, shared)

    def _insert(self, parent: fl.Chain, index: int, module: fl.Module) -> None:
        parent.insert(index, module)
        self._insertions.append((parent, module))

    def _replace(self, parent: fl.Chain, old_module: fl.Module, new_module: fl.Module) -> None:
        parent.replace(old_module, new_module)
        self._edits.append((parent, old_module, new_module))

    def _injected(self, layer_type: type[TLayer]) -> Iterator[TLayer]:
        """Walk the layers of the given type that this adapter has put into its target."""
        for module in (*(module for _, module in self._insertions), *(module for _, _, module in self._edits)):
            if isinstance(module, layer_type):
                yield module
            elif isinstance(module, fl.Chain):
                yield from module.layers(layer_type)


def only_self(total: int, level: float) -> list[bool]:
    """Tell which self-attentions are left alone at a given `only_self_level`, as Google's `_get_switch_vec` does.

    Args:
        total: The number of self-attentions.
        level: The fraction of them to leave alone, between 0 and 1.

    Returns:
        For each self-attention, whether it is left alone.
    """
    flipped = 0.5 < level < 1
    spread = int((1 - level if flipped else level) * total)
    every = total // spread if spread > 0 else total + 1
    alone = [spread > 0 and index % every == 0 for index in range(total)]
    return [not is_alone for is_alone in alone] if flipped else alone


def _walk(chain: fl.Chain, layer_type: type[TLayer]) -> Iterator[tuple[TLayer, fl.Chain]]:
    """Walk the layers of the given type, with their parents, that are in the data flow of the chain.

    What a `Passthrough` holds is left out, since its output is dropped: a ControlNet has attentions of its own.
    """

    def is_wanted(module: fl.Module, _: fl.Chain) -> bool:
        if isinstance(module, fl.Passthrough):
            raise StopIteration  # `Chain.walk` does not go into this one then
        return isinstance(module, layer_type)

    if isinstance(chain, layer_type):
        yield chain, chain.ensure_parent if chain.parent is not None else chain
        return
    for module, parent in chain.walk(is_wanted):
        assert isinstance(module, layer_type)
        yield module, parent


def _check_number(name: str, value: Any, minimum: float = -math.inf, maximum: float = math.inf) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"expected {name} to be a number, got {value!r}")
    if not math.isfinite(value) or not minimum <= value <= maximum:
        bounds = f" between {minimum:g} and {maximum:g}" if math.isfinite(maximum) else f" of at least {minimum:g}"
        bounds = bounds if math.isfinite(minimum) else ""
        raise ValueError(f"expected {name} to be a finite number{bounds}, got {value}")
