"""The places in a model where the layers of StyleAligned go: its self-attentions and group normalizations."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion.stable_diffusion_1.unet import MiddleBlock as SD1MiddleBlock
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.unet import MiddleBlock as SDXLMiddleBlock
from refiners.foundationals.latent_diffusion.style_aligned import StyleAligned as RefinersStyleAligned

from style_aligned.adapter.layers import AdaIn, AlignedFeatures, GetReferences, StyleAligned
from style_aligned.adapter.reference_bank import RecordReferences, ReplayReferences
from style_aligned.adapter.shared import (
    FullySharedScaledDotProductAttention,
    SharedGroupNorm,
    SharedScaledDotProductAttention,
)

TLayer = TypeVar("TLayer", bound=fl.Module)

Mode = Literal["batch", "record", "replay"]
"""Whether references and targets come in one batch, or the references alone and then the targets alone."""

SHARED_LAYERS = (
    StyleAligned,
    SharedScaledDotProductAttention,
    FullySharedScaledDotProductAttention,
    SharedGroupNorm,
    RecordReferences,
    ReplayReferences,
    RefinersStyleAligned,
)


@dataclass
class Site:
    """One place in a model, and the layers that stand there in each mode.

    Attributes:
        parent: The chain that holds the place.
        original: The layer that is there without StyleAligned.
        build: Builds the layers that take the place of the original one in a mode, as many in each.
        forms: The layers that have been built so far.
        mode: The mode of the layers that are there now. None means the original layer.
    """

    parent: fl.Chain
    original: fl.Module
    build: Callable[[Mode], tuple[fl.Module, ...]]
    forms: dict[Mode, tuple[fl.Module, ...]] = field(default_factory=dict[Mode, tuple[fl.Module, ...]])
    mode: Mode | None = None

    def inject(self) -> None:
        """Put the layers for a batch of references and targets in place of the original one."""
        *inserted, replacement = self.form("batch")
        self.mode = "batch"  # first: an interruption may follow each change
        for layer in inserted:
            self.parent.insert(list(self.parent).index(self.original), layer)
        self._swap(self.original, replacement)

    def eject(self) -> None:
        """Put the original layer back, wherever the way to the present mode was interrupted."""
        for form in self.forms.values():
            *inserted, replacement = form
            for layer in inserted:
                if self._holds(layer):
                    self.parent.remove(layer)
            if self._holds(replacement):
                self._swap(replacement, self.original)
        if not self._holds(self.original):
            raise ValueError(f"expected the layers of StyleAligned in {self.parent}, got others in their place")
        self.mode = None

    def set_mode(self, mode: Mode) -> None:
        """Put the layers for another mode in place of the present ones."""
        assert self.mode is not None
        for place, new_layer in enumerate(self.form(mode)):
            old_layer = next((form[place] for form in self.forms.values() if self._holds(form[place])), None)
            if old_layer is None:
                raise ValueError(f"expected the layers of StyleAligned in {self.parent}, got others in their place")
            self._swap(old_layer, new_layer)
        self.mode = mode

    def form(self, mode: Mode) -> tuple[fl.Module, ...]:
        """Give the layers of a mode."""
        if mode not in self.forms:
            self.forms[mode] = self.build(mode)
        return self.forms[mode]

    def layers(self) -> Iterator[fl.Module]:
        """Walk all layers that have been built, at any depth."""
        for layer in (layer for form in self.forms.values() for layer in form):
            yield layer
            if isinstance(layer, fl.Chain):
                yield from layer.layers(fl.Module, recurse=True)

    def check_order(self) -> None:
        """Check that what goes before an attention still stands right before it.

        Raises:
            ValueError: If another adapter has put a layer between since.
        """
        assert self.mode is not None
        form, layers = self.form(self.mode), list(self.parent)
        first = layers.index(form[0])
        for expected, layer in zip(form, layers[first:], strict=False):
            if layer is not expected:
                raise ValueError(
                    f"got a {type(layer).__name__} between StyleAligned and the attention, expected adapters that"
                    " insert layers there (such as self-attention guidance) to be injected first: eject the"
                    " StyleAlignedAdapter, inject the other one, then inject it again"
                )

    def _holds(self, layer: fl.Module) -> bool:
        return any(other is layer for other in self.parent)

    def _swap(self, old_layer: fl.Module, new_layer: fl.Module) -> None:
        if old_layer is not new_layer:
            self.parent.replace(old_layer, new_layer)


def self_attention_site(
    self_attention: fl.SelfAttention,
    key: str,
    *,
    adain_queries: bool,
    adain_keys: bool,
    adain_values: bool,
    share: bool,
) -> Site:
    """Tell which layers go into a self-attention, right before its attention and in place of it.

    Args:
        self_attention: The self-attention.
        key: Its name in a reference bank.
        adain_queries: Whether to normalize the queries.
        adain_keys: Whether to normalize the keys.
        adain_values: Whether to normalize the values.
        share: Whether the targets attend to the references.
    """
    attention = next(layer for layer in self_attention if isinstance(layer, fl.ScaledDotProductAttention))

    def features(name: str, mode: Mode, adain: bool, share: bool, scale: float | None = None) -> fl.Module:
        if not adain and not share:
            return fl.Identity()
        tokens, moments = f"{key}.{name}", f"{key}.{name}.moments"
        if mode == "record":
            recorders = (
                *((RecordReferences(tokens),) if share else ()),
                *((RecordReferences(moments, moments_only=True),) if adain else ()),
            )
            return fl.Chain(*recorders)
        aligned = StyleAligned(adain=adain, share=share, scale=scale)
        if mode == "replay":
            _replay(aligned, key=moments if adain else tokens)
            if adain and share:
                # normalized to the moments, which are not taken anew for each batch, and shared with the tokens
                replay_tokens = fl.Distribute(fl.Identity(), ReplayReferences(tokens))
                aligned.insert_after_type(AdaIn, replay_tokens)
        return aligned

    def build(mode: Mode) -> tuple[fl.Module, ...]:
        aligned = AlignedFeatures(
            features("queries", mode, adain_queries, share=False),
            features("keys", mode, adain_keys, share=share, scale=1.0 if share else None),
            features("values", mode, adain_values, share=share),
        )
        if not share or mode == "record":
            return aligned, attention
        return aligned, SharedScaledDotProductAttention(attention, references_included=mode == "batch")

    return Site(parent=self_attention, original=attention, build=build)


def fully_shared_site(self_attention: fl.SelfAttention) -> Site:
    """Tell which layer goes in place of an attention for all rows of a group to attend to each other.

    Args:
        self_attention: The self-attention.
    """
    attention = next(layer for layer in self_attention if isinstance(layer, fl.ScaledDotProductAttention))

    def build(mode: Mode) -> tuple[fl.Module, ...]:
        # nothing is done to the features, but copies are refused, and adapters that go between are found
        passed_on = AlignedFeatures(fl.Identity(), fl.Identity(), fl.Identity())
        return passed_on, FullySharedScaledDotProductAttention(attention)

    return Site(self_attention, attention, build=build)


def group_norm_site(group_norm: fl.GroupNorm, parent: fl.Chain, key: str) -> Site:
    """Tell which layer goes in place of a group normalization, to share its statistics.

    Args:
        group_norm: The group normalization.
        parent: The chain that holds it.
        key: Its name in a reference bank.
    """

    def build(mode: Mode) -> tuple[fl.Module, ...]:
        shared = SharedGroupNorm(group_norm)
        if mode == "record":
            shared.replace(shared.ensure_find(GetReferences), RecordReferences(key))
        elif mode == "replay":
            _replay(shared, key=key)
        return (shared,)

    return Site(parent=parent, original=group_norm, build=build)


def find_self_attentions(target: fl.Chain) -> list[fl.SelfAttention]:
    """Find the self-attentions of a model, in the order in which diffusers counts them: down, up, middle."""
    walked = [self_attention for self_attention, _ in walk(target, fl.SelfAttention)]
    middle = {
        id(self_attention)
        for block_type in (SD1MiddleBlock, SDXLMiddleBlock)
        for block, _ in walk(target, block_type)
        for self_attention, _ in walk(block, fl.SelfAttention)
    }
    return sorted(walked, key=lambda self_attention: id(self_attention) in middle)  # stable


def only_self(total: int, level: float) -> list[bool]:
    """Tell which self-attentions are left alone at a given `only_self_level`, as Google's `_get_switch_vec` does.

    Args:
        total: The number of self-attentions.
        level: The fraction of them to leave alone, between 0 and 1, which comes out rounded.

    Returns:
        For each self-attention, whether it is left alone.
    """
    flipped = 0.5 < level < 1
    spread = int((1 - level if flipped else level) * total)
    every = total // spread if spread > 0 else total + 1
    alone = [spread > 0 and index % every == 0 for index in range(total)]
    return [not is_alone for is_alone in alone] if flipped else alone


def walk(chain: fl.Chain, layer_type: type[TLayer]) -> Iterator[tuple[TLayer, fl.Chain]]:
    """Walk the layers of the given type, with their parents, that are in the data flow of the chain.

    What a `Passthrough` holds is left out, since its output is dropped: a ControlNet has attentions of its own.
    """
    if isinstance(chain, layer_type):
        yield chain, chain.parent or chain
        return
    for layer in chain:
        if isinstance(layer, fl.Passthrough):
            continue
        if isinstance(layer, layer_type):
            yield layer, chain
        elif isinstance(layer, fl.Chain):
            yield from walk(layer, layer_type)


def check_target(target: fl.Chain, share_group_norm: bool) -> None:
    """Check that a model holds something to share, and nothing that is shared already.

    Args:
        target: The model.
        share_group_norm: Whether group normalizations count.

    Raises:
        ValueError: If it does not.
    """
    name = type(target).__name__
    self_attentions = list(walk(target, fl.SelfAttention))
    if not self_attentions and not (share_group_norm and list(walk(target, fl.GroupNorm))):
        kinds = "self-attention or group normalization" if share_group_norm else "self-attention"
        raise ValueError(f"expected a target with at least one {kinds}, got a {name} with none")
    for self_attention, _ in self_attentions:
        attentions = [layer for layer in self_attention if isinstance(layer, fl.ScaledDotProductAttention)]
        if len(attentions) != 1 or attentions[0].is_causal:
            raise ValueError(
                "expected self-attentions with one ScaledDotProductAttention that is not causal,"
                f" got {self_attention.get_path()} in a {name}"
            )
    if shared := next((layer for layer_type in SHARED_LAYERS for layer, _ in walk(target, layer_type)), None):
        raise ValueError(
            f"expected a target that no StyleAlignedAdapter is injected in, got a {name} that"
            f" holds a {type(shared).__name__} already: eject the other adapter first"
        )


def _replay(chain: fl.Chain, key: str) -> None:
    """Make a chain take its references from a bank."""
    get_references = chain.ensure_find(GetReferences)
    chain.ensure_find_parent(get_references).replace(get_references, ReplayReferences(key))
    for layer in (chain, *chain.layers(AdaIn)):
        if isinstance(layer, AdaIn | SharedGroupNorm):
            layer.references_included = False
