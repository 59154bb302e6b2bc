"""StyleAligned as an adapter: what can be set, how it goes into a model, and how it comes out."""

import math
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Generic, TypeVar

from refiners.fluxion import layers as fl
from refiners.fluxion.adapters import Adapter
from refiners.foundationals.latent_diffusion import SD1UNet, SDXLUNet
from refiners.foundationals.latent_diffusion.style_aligned import StyleAligned as RefinersStyleAligned
from torch import Tensor
from typing_extensions import Unpack

from style_aligned.adapter.group_norm import GroupNorm
from style_aligned.adapter.passes import Passes
from style_aligned.adapter.places import find_group_norms, find_self_attentions, resolve, walk
from style_aligned.adapter.reference_bank import Mask, ReferenceBank
from style_aligned.adapter.self_attention import (
    AttentionAdapter,
    FullySharedAttentionAdapter,
    SharedAttentionAdapter,
    find_attention,
    only_self,
)
from style_aligned.adapter.sharing import CONTEXT, Mode, Sharing, SharingOptions, refuse_copy
from style_aligned.options import OPTIONS, AdapterOptions, check_options

NAMES = {"layers": "selected_layers"}
"""Options whose attribute has another name: a chain has a method `layers`."""

OF_SHARING = [field.name for field in fields(SharingOptions) if field.name in OPTIONS]
FIXED = [name for name, option in OPTIONS.items() if not option.changeable]
"""The options that decide which layers there are."""

ATTRIBUTES = {NAMES.get(name, name): name for name in OPTIONS}
MASK_OF_NO_REFERENCE = "expected no reference_mask beside full_attention_share, where there is no reference"

T = TypeVar("T", bound=fl.Chain)
TStyleAlignedAdapter = TypeVar("TStyleAlignedAdapter", bound="StyleAlignedAdapter[Any]")  # Self (see PEP 673)


class StyleAlignedAdapter(Generic[T], fl.Chain, Adapter[T]):
    """Make the images of a set share the style of the first one, the reference.

    See [[arXiv:2312.02133] Style Aligned Image Generation via Shared Attention](https://arxiv.org/abs/2312.02133).

    A batch holds groups of `set_size` consecutive rows, each starting with its reference. With classifier-free guidance
    the two halves of the batch are groups of their own: for one set of 4 images, 8 rows and `set_size=4`, or `None`.

    Options are attributes too, of the same names: only `layers` is `selected_layers`. Those that decide which layers
    there are (`FIXED`) are set before `inject`, the others at any time.

    As with Refiners' own adapters, a model cannot be copied (`structural_copy`) while this one is injected. Adapters
    that copy parts of it, such as ControlLora, are made before, and injected before or after.

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
        self._options = given
        self._progress: float | None = None
        self._sharing = Sharing()

        with self.setup_adapter(target):
            super().__init__(target)
        self._check_target()
        self._apply_options()
        self._is_injected = False
        self._adapters: list[AttentionAdapter | GroupNorm] = []
        self._passes: list[Passes] = []  # of each U-Net
        self._chains: list[fl.Chain] = []

    def __getattr__(self, name: str) -> Any:
        return self._options[ATTRIBUTES[name]] if name in ATTRIBUTES else super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in NAMES:
            warn_of_name(name, NAMES[name])
            name = NAMES[name]
        if name not in ATTRIBUTES:
            super().__setattr__(name, value)
            return
        option = ATTRIBUTES[name]
        check_options({**self._options, option: value})
        if option in FIXED and self._is_injected:
            raise ValueError(f"expected {option} to be set before inject(), got it while injected: eject() first")
        if option == "layers":
            resolve(value, list(self.selectable_layers))
        if option == "full_attention_share" and value and self.reference_mask is not None:
            raise ValueError(MASK_OF_NO_REFERENCE)
        self._options[option] = value
        self._apply_options()

    @property
    def selectable_layers(self) -> dict[str, int]:
        """The self-attentions that `selected_layers` can name, in the order in which diffusers counts them.

        Parts of a name select as well: `up`, `up.0`, `up.0.1`. Group normalizations go with their block, such as
        `up.0.1`, and the one of the output is `out`.

        Returns:
            By name, how many latents a side go into one token of the layer.
        """
        return {place.name: place.downscale for place in find_self_attentions(self.target)}

    def layers(self, layer_type: Any = None, recurse: bool = False) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Walk the layers of a type, as in any other chain.

        Args:
            layer_type: The type. Without it, this is the old name of `selectable_layers`.
            recurse: Whether to recurse into them.
        """
        if layer_type is None:
            warn_of_name("layers()", "selectable_layers")
            return self.selectable_layers
        return super().layers(layer_type, recurse)

    @property
    def options(self) -> dict[str, Any]:
        """The options, by name."""
        return dict(self._options)

    @property
    def reference_mask(self) -> Tensor | None:
        """Which part of the reference gives the style: weights between 0 and 1, of shape (height, width). None: all."""
        return None if self._sharing.mask is None else self._sharing.mask.weights

    @reference_mask.setter
    def reference_mask(self, mask: Tensor | None) -> None:
        if mask is not None and (mask.ndim != 2 or not mask.isfinite().all() or mask.min() < 0 or mask.max() > 1):
            raise ValueError("expected a reference_mask of shape (height, width) with weights between 0 and 1")
        if mask is not None and mask.max() == 0:
            raise ValueError("expected a reference_mask that leaves something of the reference, got zeros alone")
        if mask is not None and self.full_attention_share:
            raise ValueError(MASK_OF_NO_REFERENCE)
        self._sharing.mask = None if mask is None or (mask == 1).all() else Mask(mask)

    def set_step(self, step: int, num_steps: int) -> bool:
        """Say which step of the way is next, for `steps` to be followed. Without it, all steps share.

        Args:
            step: The step, from 0 on.
            num_steps: The number of steps.

        Returns:
            Whether anything is shared at this step. If not, references need not be recorded.
        """
        self._progress = step / num_steps
        self._follow_steps()
        return self._sharing.is_on

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
        self._passes = [Passes(unet, self, self._sharing) for unet in self._find_unets()]
        super().inject(parent)
        self._progress, self._sharing.is_on = None, True
        self.set_context(CONTEXT, {"sharing": self._sharing})
        self._chains = self._find_chains()
        self._is_injected = True
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
        for passes in self._passes:
            passes.leave()
        for chain in (*self._find_chains(), *self._chains):  # another adapter may have taken some out since
            chain.provider.contexts.pop(CONTEXT, {}).clear()  # and may itself hold what it was given of ours
        super().eject()
        self._hold_target()
        self._adapters, self._passes, self._is_injected = [], [], False

    def _hold_target(self) -> None:
        """Hold the target for the next `inject`, and not an adapter of it that came in between."""
        if (between := self[0]) is not self.target:
            assert isinstance(between, fl.Chain)
            holder = self.target.parent
            self.replace(between, self.target, old_module_parent=between.parent)
            self.target._set_parent(holder)  # pyright: ignore[reportPrivateUsage]

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
        mask = self._sharing.mask
        bank.start(self.target, self._recorded_options(), None if mask is None else Mask(mask.weights))
        with self._in_mode(Mode("record", [bank])):
            yield

    @contextmanager
    def replay(self, *banks: ReferenceBank, weights: Sequence[float] | None = None) -> Generator[None, None, None]:
        """Make the target take targets alone, which share the references that were recorded.

        A batch holds as many consecutive rows for each of the recorded ones, in their order. They may be of another
        size than the references. With several banks the targets share the references of all of them.

        Args:
            banks: What was recorded.
            weights: What each bank counts for, in proportion. None means all alike.

        Raises:
            ValueError: As for `record`, or if a bank is empty, or was recorded with another target or other options,
                if the weights are no numbers of at least 0, one for each bank, or if there are several references
                beside `query_guidance`.
        """
        self._check_mode("replay")
        weights = [1.0] * len(banks) if weights is None else list(weights)
        if len(weights) != len(banks) or not banks:
            raise ValueError(f"expected a weight for each bank, got {len(weights)} for {len(banks)}")
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) == 0:
            raise ValueError(f"expected weights of at least 0 that do not sum up to nothing, got {weights}")
        weighted = [(bank, weight / sum(weights)) for bank, weight in zip(banks, weights, strict=True) if weight > 0]
        if len(weighted) > 1 and self.query_guidance:
            raise ValueError("expected one reference beside query_guidance, got several")
        for bank, _ in weighted:
            bank.check_recorded(self.target, self._recorded_options())
        if len(counts := {bank.groups for bank, _ in weighted}) > 1:
            raise ValueError(
                f"expected banks with the same number of references, got {' and '.join(map(str, sorted(counts)))}:"
                " record all of them with guidance, or none"
            )
        with self._in_mode(Mode("replay", [bank for bank, _ in weighted], [share for _, share in weighted])):
            yield

    def _pre_structural_copy(self) -> None:
        refuse_copy()

    def _check_mode(self, mode: str) -> None:
        if not self._is_injected:
            raise ValueError(f"this StyleAlignedAdapter is not injected: expected inject() before {mode}()")
        if self.full_attention_share:
            raise ValueError(
                f"expected full_attention_share=False to {mode} references, got True: they attend to their targets"
                " then, and cannot go before them"
            )
        if (present := self._sharing.mode.name) != "batch":
            raise ValueError(f"expected {mode}() outside of {present}(), got it inside")

    @contextmanager
    def _in_mode(self, mode: Mode) -> Generator[None, None, None]:
        before, self._sharing.mode = self._sharing.mode, mode
        try:
            yield
        finally:
            self._sharing.mode = before

    def _recorded_options(self) -> dict[str, Any]:
        """Return the options that decide on what is recorded."""
        return {name: self._options[name] for name in (*FIXED, "halves")}

    def _apply_options(self) -> None:
        """Tell the layers what can change while they are there."""
        layers = self._options["layers"]
        strengths = None if layers is None else resolve(layers, list(self.selectable_layers))
        given = {name: self._options[name] for name in OF_SHARING}
        self._sharing.options = SharingOptions(**given, strengths=strengths)
        self._follow_steps()

    def _follow_steps(self) -> None:
        """Share or not, as it is set for the present step."""
        strengths = self._sharing.options.strengths
        if self._progress is not None:
            is_any_shared = strengths is None or any(strengths.values()) or self.query_guidance > 0
            self._sharing.is_on = (
                self.strength > 0 and is_any_shared and self.steps[0] <= self._progress < self.steps[1]
            )

    def _check_target(self) -> None:
        """Check that the target holds something to share, and nothing that is shared already."""
        name = type(self.target).__name__
        for layer in (*self.target.get_parents(), *self.target.modules()):
            if is_adapted(layer):
                raise ValueError(
                    f"expected a target that no StyleAlignedAdapter is injected in, got a {name} with a"
                    f" {type(layer).__name__} already: eject the other adapter first"
                )
        self_attentions = [place.layer for place in find_self_attentions(self.target)]
        if not self_attentions and not (self.share_group_norm and any(walk(self.target, fl.GroupNorm))):
            kinds = "self-attention or group normalization" if self.share_group_norm else "self-attention"
            raise ValueError(f"expected a target with at least one {kinds}, got a {name} with none")
        for self_attention in self_attentions:
            find_attention(self_attention)

    def _find_chains(self) -> list[fl.Chain]:
        """Find all chains that have the context: adapters that came later stand between this one and the target."""
        return [chain for top in (self, self.target) for chain in (top, *top.layers(fl.Chain, recurse=True))]

    def _find_unets(self) -> list[fl.Chain]:
        return [unet for unet_type in (SD1UNet, SDXLUNet) for unet, _ in walk(self.target, unet_type)]

    def _adapt_attentions(self) -> list[AttentionAdapter]:
        """Inject a sub-adapter into every self-attention that shares."""
        adapters: list[AttentionAdapter] = []
        names = ("adain_queries", "adain_keys", "adain_values", "share_attention")
        options: dict[str, Any] = {name: self._options[name] for name in names}
        places = find_self_attentions(self.target) if any(options.values()) else []
        for place, is_alone in zip(places, only_self(len(places), level=self.only_self_level), strict=True):
            attention, parent = find_attention(place.layer)
            if is_alone:
                continue
            if self.full_attention_share:
                adapter = FullySharedAttentionAdapter(attention, place.name)
            else:
                adapter = SharedAttentionAdapter(attention, place.name, **options)
            adapters.append(adapter.inject(parent))
        return adapters

    def _adapt_group_norms(self) -> list[GroupNorm]:
        """Put a shared normalization in place of every one, if they are to be shared."""
        shared: list[GroupNorm] = []
        for place in find_group_norms(self.target) if self.share_group_norm else ():
            shared.append(GroupNorm(place.layer, f"{place.name}.group_norm_{len(shared)}"))
            place.parent.replace(place.layer, shared[-1])
        return shared


def warn_of_name(old: str, new: str) -> None:
    """Warn of a name of the adapter that has changed."""
    message = f"StyleAlignedAdapter.{old} is now StyleAlignedAdapter.{new}: the old name will go"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


def is_adapted(layer: object) -> bool:
    """Return whether a layer is one that an adapter for StyleAligned, this or Refiners' own, has put there."""
    return isinstance(layer, StyleAlignedAdapter | AttentionAdapter | GroupNorm | RefinersStyleAligned)
