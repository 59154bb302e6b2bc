"""A style: the reference of a set, as the trajectory that leads to it, in a file of its own."""

import hashlib
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from refiners.foundationals.latent_diffusion.solvers import Solver
from torch import Tensor

from style_aligned.adapter.adapter import StyleAlignedAdapter
from style_aligned.models.checkpoints.prompts import warn_about_prompts
from style_aligned.models.denoising import predict_noise
from style_aligned.models.extras.control import controls_of
from style_aligned.models.finite import decode_image
from style_aligned.models.model import (
    Model,
    check_is_model,
    check_model,
    tensor_bytes,
)
from style_aligned.models.solvers import (
    make_solver,
)
from style_aligned.models.state import exclusive_use
from style_aligned.models.text import TextEmbedding
from style_aligned.options import split_options
from style_aligned.styles.captions import Captioner
from style_aligned.styles.compatibility import (
    check_control_models,
    check_solver,
    check_started,
    check_text,
    check_weights,
)
from style_aligned.styles.contents import as_json, as_tensors, read_fields
from style_aligned.styles.control import Control, Pictures
from style_aligned.styles.file import PREVIEW, StyleError, write_blend_file, write_style_file
from style_aligned.styles.from_image import read_picture
from style_aligned.styles.from_prompt import read_prompt
from style_aligned.styles.mask import digest_mask, prepare_mask
from style_aligned.styles.picture import Fit
from style_aligned.styles.settings import (
    GUIDANCE_OFF,
    SETTINGS,
    check_settings,
    refusal,
)
from style_aligned.styles.trajectory import ReferenceTrajectory
from style_aligned.words import show


@dataclass(frozen=True, eq=False, repr=False)
class Style:
    """The reference of a set: its latents at every step, its text embedding, and how they came about.

    A style from a prompt costs nothing to make: [`generate`][style_aligned.sampling.generate] does the steps of the
    reference along with those of the first images, and [`save`][style_aligned.styles.Style.save] does those that are
    left.

    Attributes:
        prompt: The prompt of the reference.
        negative_prompt: The prompt to guide away from, for the targets too.
        seed: The seed of its noise, unless that was given.
        num_inference_steps: The number of steps.
        condition_scale: The strength of the classifier-free guidance, for the targets too. 0 or 1 means that there is
            none.
        size: The height and width of the reference, in pixels.
        options: The options of the [`StyleAlignedAdapter`][style_aligned.adapter.StyleAlignedAdapter].
        solver: The name and parameters of the solver.
        model: The class, precision and fingerprint of the model, and whether it has classifier-free guidance.
        text: The text embedding of the reference.
        trajectory: The latents of the reference.
        method: How the reference was made: `"prompt"`, or from a picture.
        picture: The SHA-256 of the picture's pixels. None for styles from prompts.
        details: How the picture was brought to its trajectory, by the names of the arguments of `from_image`, and the
            `residual` of its fixed-point iterations. Empty for styles from prompts.
        weights: Samples of the model's weights, by which it is known in another precision. None for styles of files
            that have none.
        reference_mask: Which part of the reference gives the style: weights between 0 and 1, at the resolution of its
            latents. None means all of it.
        blended: The styles that it blends, with their weights. Empty for a style of one reference.
        control: The control models that the reference was drawn with: the file, the scale and the SHA-256 of the
            picture's pixels of each.
        control_pictures: These pictures, of the size of the reference.
    """

    prompt: str
    negative_prompt: str
    seed: int
    num_inference_steps: int
    condition_scale: float | int
    size: tuple[int, int]
    options: dict[str, Any]
    solver: dict[str, Any]
    model: dict[str, Any]
    text: TextEmbedding
    trajectory: ReferenceTrajectory
    method: str = "prompt"
    picture: str | None = None
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    weights: Float[Tensor, " weights"] | None = field(default=None)
    reference_mask: Float[Tensor, "latents_height latents_width"] | None = field(default=None)
    blended: tuple[tuple["Style", float], ...] = ()
    control: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    control_pictures: tuple[Image.Image, ...] = ()

    def __post_init__(self) -> None:
        made = self.trajectory.__dict__.setdefault("made_with", self._made_with())
        for name, value in self._made_with().items():
            if made[name] != value:
                raise ValueError(refusal(name, value, made[name]))

    @classmethod
    def from_prompt(
        cls,
        model: Model,
        prompt: str,
        *,
        negative_prompt: str = "",
        seed: int = 0,
        noise: Float[Tensor, "1 4 height width"] | None = None,
        num_inference_steps: int | None = None,
        condition_scale: float | int | None = None,
        size: tuple[int, int] | None = None,
        reference_mask: Tensor | Image.Image | str | Path | None = None,
        control: Pictures | None = None,
        options: Mapping[str, Any] | None = None,
        **keywords: Any,
    ) -> "Style":
        """Make a style from a prompt. No step is done yet: they are, as the style is used or saved.

        Args:
            model: The model, with the solver to use.
            prompt: The prompt of the reference.
            negative_prompt: The prompt to guide away from.
            seed: The seed of the noise.
            noise: The noise itself, in place of what the seed gives.
            num_inference_steps: The number of steps. None means what is recommended for the model.
            condition_scale: The strength of the classifier-free guidance: 0 or 1 turns it off, and saves half of the
                time. None means what is recommended for the model.
            size: The height and width in pixels. None means what the model was trained for.
            reference_mask: Which part of the reference gives the style: a picture, of which alpha or brightness counts,
                its path, or weights between 0 and 1. None means all of it.
            control: A picture that the reference follows by the control model that
                [`Extras`][style_aligned.models.extras.Extras] has put beside the model, or a list with one for each of
                several. The style keeps it. None draws the reference without control models.
            options: Options of the [`StyleAlignedAdapter`][style_aligned.adapter.StyleAlignedAdapter], by name.
            keywords: The same options, as keywords. Those that are not given are as recommended for the model.

        Raises:
            TypeError: If the first argument is no model, or a setting is not of its type.
            ValueError: If the prompt is empty, a number out of its range, an option not one that a style can have, or
                the solver not one that can do these steps, or if the model has self-attention guidance or is adapted
                already.

        Example:
            ```py
            from style_aligned import Style, load_model

            model = load_model()
            style = Style.from_prompt(model, "a fox, neon sign", seed=5, num_inference_steps=2)
            assert style.steps_done == 0
            ```
        """
        fields = read_prompt(
            model, prompt, noise=noise, mask=reference_mask, control=control,
            negative_prompt=negative_prompt, seed=seed, size=size, num_inference_steps=num_inference_steps,
            condition_scale=condition_scale, options=options, keywords=keywords,
        )  # fmt: skip
        warn_about_prompts(model, [prompt, negative_prompt])
        return cls(**fields)

    @classmethod
    def from_image(
        cls,
        model: Model,
        image: str | Path | Image.Image,
        prompt: str | None = None,
        *,
        method: str = "noise",
        negative_prompt: str = "",
        seed: int = 0,
        noise: Float[Tensor, "1 4 height width"] | None = None,
        num_inference_steps: int | None = None,
        condition_scale: float | int | None = None,
        inversion_scale: float | int = 2.0,
        offset: int = 5,
        iterations: int = 0,
        fresh_noise: bool = False,
        size: tuple[int, int] | None = None,
        fit: Fit = "crop",
        captioner: Captioner | str | Path | None = None,
        like: str | None = None,
        reference_mask: Tensor | Image.Image | str | Path | None = None,
        on_step: Callable[[int], None] | None = None,
        options: Mapping[str, Any] | None = None,
        **keywords: Any,
    ) -> "Style":
        """Make a style from a picture.

        What is done to the picture is said in a warning: parts that are cut off, transparent parts put on white, and so
        on.

        Args:
            model: The model, with the solver to use.
            image: The picture, or the path of its file.
            prompt: What the picture shows and in which style, as in "a castle, watercolor". None has a captioner write
                it, which is said in a warning.
            method: `"noise"` noises the picture to every step, which takes no pass of the U-Net. `"ddim"` inverts it,
                as Google's code does, which takes a pass for each step.
            negative_prompt: The prompt to guide away from.
            seed: The seed of the noise.
            noise: The noise itself, in place of what the seed gives. For `"noise"` only.
            num_inference_steps: The number of steps. None means what is recommended for the model.
            condition_scale: The strength of the classifier-free guidance of the targets: 0 or 1 turns it off. None
                means what is recommended for the model.
            inversion_scale: The strength of the guidance while the picture is inverted.
            offset: How many of the noisiest latents of an inversion to skip: they are not quite noise.
            iterations: The number of fixed-point iterations of each step of an inversion.
            fresh_noise: Whether `"noise"` takes other noise for each step.
            size: The height and width of the reference in pixels. None means what the model was trained for, or with
                `fit="fit"` a size of the picture's shape.
            fit: How the picture is brought to that size: `"crop"` takes its middle, `"pad"` puts all of it on white,
                `"fit"` takes all of it at a size of its own shape, and `"stretch"` changes its shape, as Google's
                notebook does.
            captioner: What writes a prompt: a function of a PIL image, or the name or folder of a model. None means the
                classifier of the embedded model, and BLIP for others.
            like: The name of settings of others: `"google-transfer"` or `"google-famous"`. What is given beside it
                takes precedence.
            reference_mask: Which part of the picture gives the style, as for `from_prompt`, brought to its size in the
                same way as the picture. `"alpha"` means the picture's own transparency.
            on_step: Called after each step of an inversion, with 1.
            options: Options of the [`StyleAlignedAdapter`][style_aligned.adapter.StyleAlignedAdapter], by name.
            keywords: The same options, as keywords. Those that are not given are as recommended for the model.

        Raises:
            TypeError: If the first argument is no model, or a setting is not of its type.
            ValueError: If the picture cannot be read, a setting is out of its range, or the model cannot be aligned.
            FileNotFoundError: If there is no such picture.
            ModuleNotFoundError: If there is no prompt, and nothing to write one is installed.

        Example:
            ```py
            from PIL import Image

            from style_aligned import Style, generate, load_model

            model = load_model()
            picture = Image.new("RGB", (256, 256), "orange")
            style = Style.from_image(model, picture, "a pumpkin, pixel art", num_inference_steps=2)
            (image,) = generate(model, style, ["a mushroom, pixel art"])
            ```
        """
        details: dict[str, Any] = {"fit": fit, "fresh_noise": fresh_noise}
        if method == "ddim":
            details = {"fit": fit, "inversion_scale": inversion_scale, "offset": offset, "iterations": iterations}
        fields = read_picture(
            model, image, prompt, method, details, noise=noise, captioner=captioner, mask=reference_mask,
            on_step=on_step,
            negative_prompt=negative_prompt, seed=seed, size=size, num_inference_steps=num_inference_steps,
            condition_scale=condition_scale, like=like, options=options, keywords=keywords,
        )  # fmt: skip
        return cls(**fields)

    @classmethod
    def blend(cls, styles: Sequence[tuple["Style", float]]) -> "Style":
        """Blend several styles: targets share the references of all of them.

        Prompt, size and options are those of the first one. Keys and values of the references stand side by side, each
        with its weight, and AdaIN goes to the moments of their mixture.

        Args:
            styles: The styles, each with its weight. Weights count in proportion.

        Returns:
            The blend. If only one style has a weight, it is that style.

        Raises:
            ValueError: If the weights are no numbers of at least 0 that do not sum up to nothing.
            StyleError: If the styles are of different models, solvers, numbers of steps or guidance.

        Example:
            ```py
            from style_aligned import Style, load_model

            model = load_model()
            neon = Style.from_prompt(model, "a fox, neon sign", num_inference_steps=2)
            ink = Style.from_prompt(model, "a fox, ink", num_inference_steps=2)
            assert len(Style.blend([(neon, 0.7), (ink, 0.3)]).parts) == 2
            ```
        """
        parts = [(part, weight * own) for style, weight in styles for part, own in style.parts]
        weights = [weight for _, weight in parts]
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) == 0:
            raise ValueError(f"expected weights of at least 0 that do not sum up to nothing, got {weights}")
        parts = [(part, weight / sum(weights)) for part, weight in parts if weight > 0]
        first = parts[0][0]
        for part, _ in parts[1:]:
            for name in ("model", "solver", "num_inference_steps", "condition_scale"):
                if (found := getattr(part, name)) != (expected := getattr(first, name)):
                    raise StyleError(
                        f"expected styles with the same {name} to blend, got {show(expected)} and {show(found)}"
                    )
        if len(parts) > 1 and first.options.get("query_guidance"):
            raise ValueError("expected one style beside query_guidance, got several")
        return first if len(parts) == 1 else replace(first, blended=tuple(parts))

    @property
    def parts(self) -> tuple[tuple["Style", float], ...]:
        """The styles that it blends with their weights, which is itself alone for a style of one reference."""
        return self.blended or ((self, 1.0),)

    @property
    def steps_done(self) -> int:
        """The number of steps that the reference has done."""
        return self.trajectory.steps_done

    @property
    def is_complete(self) -> bool:
        """Whether the reference has done all of its steps."""
        return self.trajectory.is_complete and all(part.is_complete for part, _ in self.blended)

    @property
    def latents(self) -> Float[Tensor, "steps 4 height width"]:
        """The latents before each step, and after the last one. Steps that are left are done first."""
        return self.complete().trajectory.stacked

    @property
    def preview(self) -> Image.Image:
        """The reference in small. Steps that are left are done first."""
        if self.trajectory.preview is None:
            image = self.complete().image()
            image.thumbnail((PREVIEW, PREVIEW))
            self.trajectory.preview, self.trajectory.model = image, None
        return self.trajectory.preview

    @property
    def digest(self) -> str:
        """A fingerprint of the reference's latents. Steps that are left are done first."""
        if self.blended:
            digests = [f"{part.digest} {weight}" for part, weight in self.blended]
            return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]
        known = self.complete().trajectory.__dict__
        if "digest" not in known:
            known["digest"] = hashlib.sha256(tensor_bytes(self.latents)).hexdigest()[:16]
        return known["digest"]

    def complete(self, model: Model | None = None, *, on_step: Callable[[int], None] | None = None) -> "Style":
        """Do the steps that are left.

        Args:
            model: The model. None means that which the style was made with.
            on_step: Called after each step, with the number of images that have done one, which is 1.

        Returns:
            The style.

        Raises:
            StyleError: If the model is another one than the style was started with, or has another solver.
            ValueError: If the model has self-attention guidance or is adapted, or if the latents overflow.
        """
        if self.is_complete:
            return self
        model = self._own_model() if model is None else model
        for part, _ in self.blended:
            part.complete(model, on_step=on_step)
        with exclusive_use(model):
            self.check(model)
            solver = make_solver(model, self.num_inference_steps)
            while not self.is_complete:
                self.advance(model, solver, self.steps_done)
                if on_step is not None:
                    on_step(1)
        return self

    def advance(self, model: Model, solver: Solver, step: int) -> bool:
        """Have the reference go through the U-Net at a step, and do that step if it is the next one.

        Args:
            model: The model.
            solver: The solver, for its timesteps. It stays as it is.
            step: The step: the next one, or one that is done.

        Returns:
            Whether it was the next one.

        Raises:
            ValueError: If there is no such step or those before it are not done, or if the latents overflow.
        """
        last = min(self.steps_done, self.num_inference_steps - 1)
        if not 0 <= step <= last:
            raise ValueError(f"expected a step between 0 and {last}, got {step}")
        with self._follow_control(model):
            predicted_noise = predict_noise(
                model,
                solver,
                self.trajectory.latents[step].to(device=model.device, dtype=model.dtype),
                step,
                text=self.text.to(model.device, model.dtype),
                condition_scale=self.condition_scale,
            )
        return self.trajectory.advance(predicted_noise, step, self.prompt)

    def with_(self, **changes: Any) -> "Style":
        """Return a style with other options, and the same reference.

        Args:
            changes: Options of the [`StyleAlignedAdapter`][style_aligned.adapter.StyleAlignedAdapter] by name, or
                `options` for all of them; `reference_mask`; and `condition_scale`, for styles that were made from
                pictures.

        Raises:
            TypeError: If there is no such setting, or a value is not of its type.
            ValueError: If the reference would have to be another one, with the reason, or a value is out of its range.

        Example:
            ```py
            from style_aligned import Style, load_model

            style = Style.from_prompt(load_model(), "a fox, neon sign", scale=0.9)
            assert style.with_(shift=0.5).options == {"share_group_norm": True, "scale": 0.9, "shift": 0.5}
            ```
        """
        masks: dict[str, Any] = {}
        if "reference_mask" in changes:
            mask = changes.pop("reference_mask")
            masks = {"reference_mask": None if mask is None else prepare_mask(mask, self.size)}
        settings: dict[str, Any] = {name: value for name, value in changes.items() if name in SETTINGS}
        options = split_options(
            {name: value for name, value in changes.items() if name not in SETTINGS}, None, "Style.with_"
        )
        fixed = self._made_with()
        for name, value in settings.items():
            if name in fixed and value != fixed[name]:
                raise ValueError(refusal(name, value, fixed[name]))
        changed = {"options": self.options, **settings}
        changed["options"] = split_options(options, changed["options"], "Style.with_")
        if changed.get("condition_scale") in GUIDANCE_OFF:
            changed["text"] = self.text.conditional
        elif "condition_scale" in changed and self.text.rows == 1 and self.model["classifier_free_guidance"]:
            raise ValueError(
                f"expected condition_scale to stay {self.condition_scale:g}, which is no guidance, got"
                f" {show(changed['condition_scale'])}: the style holds no negative prompt for it"
            )
        check_settings({**self.settings, **{name: changed[name] for name in changed if name in SETTINGS}})
        return replace(self, **changed, **masks)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by name, as files have them."""
        return {name: getattr(self, name) for name in SETTINGS}

    def describe(self) -> dict[str, Any]:
        """Return the settings as they are shown, and written into images."""
        more: dict[str, Any] = {}
        if self.reference_mask is not None:
            more["reference_mask"] = digest_mask(self.reference_mask)
        if self.control:
            more["reference_control"] = self.control
        if self.blended:
            described = [(part.describe(), weight) for part, weight in self.blended]
            for own, _ in described:
                del own["options"]  # those of the blend count
            more["blend"] = [{"style": own, "weight": weight} for own, weight in described]
        from_picture: dict[str, Any] = {}
        if self.method != "prompt":
            from_picture = {"method": self.method, "picture": self.picture, "details": self.details}
        return {
            "reference": self.prompt,
            "reference_seed": self.seed,
            "negative_prompt": self.negative_prompt,
            "steps": self.num_inference_steps,
            "guidance": self.condition_scale,
            "size": f"{self.size[1]}x{self.size[0]}",
            "options": self.options,
            "solver": self.solver,
            "model": self.model,
            **from_picture,
            **more,
        }

    def check(self, model: Model, force: bool = False) -> None:
        """Check that it fits a model. Another precision of the same weights is a warning, if all steps are done.

        Args:
            model: The model, with its solver.
            force: Whether to let other weights of the same kind of model pass. Steps that are left to do must be done
                by the model that has started them.

        Raises:
            StyleError: If it does not, with the reason.
            ValueError: If the model has self-attention guidance or reference-only control, or is adapted already.
        """
        check_is_model(model)
        for part, _ in self.blended[1:]:
            part.check(model, force)
        guidance = self.condition_scale
        with exclusive_use(model):
            check_model(model, {})
            if not self.is_complete:
                check_started(model, self.model, self.trajectory.latents[0].device, condition_scale=guidance)
            check_weights(model, self.model, self.weights, condition_scale=guidance, force=force and self.is_complete)
            check_control_models(model, self.control, force=force)
            check_solver(model, self.solver)
            try:
                StyleAlignedAdapter(model.unet, **self.options)
                make_solver(model, self.num_inference_steps)
            except ValueError as error:
                raise StyleError(f"the style does not fit the model: {error}") from None
            check_text(model, self.text)

    def image(self, model: Model | None = None) -> Image.Image:
        """Decode the reference. Steps that are left are done first.

        Args:
            model: The model. None means that which the style was made with, if it was not loaded from a file.
        """
        model = self._own_model() if model is None else model
        self.complete(model)
        with exclusive_use(model):
            latents = self.trajectory.latents[-1].to(device=model.device, dtype=model.dtype)
            return decode_image(model.lda, latents, f"the image of {self.prompt!r}")

    def save(self, path: str | Path) -> None:
        """Write the style to a safetensors file: the same bytes for the same style. Steps that are left are done first.

        Args:
            path: The path of the file. What is there is replaced once the new file is complete.

        Raises:
            ValueError: If a setting is not of its type or out of its range, so that the file could not be read again,
                or if steps are left to do and the latents overflow.
            OSError: If the file cannot be written.
        """
        parts = [
            (as_json(part.settings), part._tensors(), part.preview, weight) for part, weight in self.complete().parts
        ]
        (_, tensors, preview, weight), *others = parts
        settings = as_json(self.settings)  # a blend may have other options than its first style
        if others:
            write_blend_file(Path(path), [(settings, tensors, preview, weight), *others])
        else:
            write_style_file(Path(path), settings, tensors, preview)

    @classmethod
    def load(cls, path: str | Path) -> "Style":
        """Read a style from a file that [`save`][style_aligned.styles.Style.save] has written.

        Everything is checked, shapes before anything is allocated.

        Args:
            path: The path of the file.

        Raises:
            StyleError: If the file is not a style, or was altered or cut off.
            FileNotFoundError: If there is no such file.
        """
        styles = [(cls(**fields), weight) for fields, weight in read_fields(Path(path))]
        return styles[0][0] if len(styles) == 1 else cls.blend(styles)

    @classmethod
    def from_reference(
        cls, model: Model, reference: "Style", *, on_step: Callable[[int], None] | None = None
    ) -> "Style":
        """Deprecated: use [`complete`][style_aligned.styles.Style.complete]."""
        warnings.warn(
            "Style.from_reference(model, reference) is now reference.complete(): a reference is a Style",
            DeprecationWarning,
            stacklevel=2,
        )
        return reference.complete(model, on_step=on_step)

    def __repr__(self) -> str:
        steps = self.num_inference_steps
        done = "" if self.is_complete else f", {self.steps_done} of them done"
        width, height = self.size[1], self.size[0]
        return (
            f"Style({show(self.prompt, 50)}, seed={self.seed}, {steps} step{'' if steps == 1 else 's'}{done},"
            f" {width}x{height})"
        )

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.preview.save(buffer, format="PNG")
        return buffer.getvalue()

    def _follow_control(self, model: Model) -> AbstractContextManager[None]:
        """Have the reference follow its control pictures for a pass, if it has any."""
        if not self.control_pictures:
            return nullcontext()
        return Control(controls_of(model), [list(self.control_pictures)]).on([0], halves=self.text.rows)

    def _made_with(self) -> dict[str, Any]:
        """The settings that the reference depends on."""
        fixed = {name: getattr(self, name) for name in SETTINGS if name != "options"}
        if self.method != "prompt":  # it was not guided there
            del fixed["condition_scale"]
        return fixed

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors that files have."""
        return as_tensors(self.latents, self.text, self.weights, self.reference_mask, self.control_pictures)

    def _own_model(self) -> Model:
        if self.trajectory.model is None:
            raise TypeError("expected a model for a style that was loaded or completed, got none: give it one")
        return self.trajectory.model
