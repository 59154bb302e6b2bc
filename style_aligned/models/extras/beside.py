"""Several adapters beside StyleAligned, put into a model in the right order and taken out in the right order."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from PIL import Image
from refiners.foundationals.clip.image_encoder import CLIPImageEncoder
from refiners.foundationals.latent_diffusion import SD1IPAdapter, SDXLIPAdapter, StableDiffusion_1, StableDiffusion_XL

from style_aligned.files import digest_picture
from style_aligned.models.extras.control import ControlModel, add_controls, remove_controls
from style_aligned.models.extras.embedding import FileEmbedding
from style_aligned.models.extras.ip_adapter import load_ip_adapter
from style_aligned.models.extras.lora import FileLora
from style_aligned.models.model import beside


class Extras:
    """LoRAs, embeddings of words, an image prompt and control models beside a model, from files.

    Everything is read and checked first. `StyleAlignedAdapter`, which `generate` injects by itself, comes last. Out
    they go the other way round.

    Attributes:
        loras: The LoRAs.
        embeddings: The words of textual inversion.
        ip_adapter: The image prompt's adapter, if there is one.
        controls: The control models.
    """

    def __init__(
        self,
        model: StableDiffusion_XL | StableDiffusion_1,
        *,
        loras: Sequence[tuple[str | Path, float]] = (),
        embeddings: Sequence[str | Path | tuple[str | Path, str | None]] = (),
        ip_adapter: str | Path | None = None,
        image_encoder: CLIPImageEncoder | str | Path | None = None,
        image_prompt: Image.Image | None = None,
        image_prompt_scale: float = 1.0,
        control: str | Path | Sequence[str | Path | tuple[str | Path, float]] = (),
        control_scale: float = 1.0,
    ) -> None:
        """Initialize the Extras.

        Args:
            model: The model.
            loras: The files of LoRAs, with the scale of each.
            embeddings: The files of textual inversion, each alone or with its word, as `FileEmbedding` takes them.
            ip_adapter: The file of an IP-Adapter.
            image_encoder: The image encoder that it was trained with, or where that lies.
            image_prompt: The image prompt.
            image_prompt_scale: How strong it is.
            control: The file of a control model, for which `generate` takes a picture for each image; or several, each
                alone or with its scale.
            control_scale: How strong the control is, where no scale is given.

        Raises:
            CheckpointError: If a file does not fit the model.
            ValueError: If a LoRA is given twice, or not all of what an image prompt takes.
        """
        self._model = model
        self.loras = [FileLora(model, path, scale=scale) for path, scale in loras]
        names = [lora.name for lora in self.loras]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"expected each LoRA once, got {twice!r} twice")
        worded = [(file, None) if isinstance(file, str | Path) else file for file in embeddings]
        self.embeddings = [FileEmbedding(model, path, token=token) for path, token in worded]
        self.ip_adapter: SDXLIPAdapter | SD1IPAdapter | None = None
        self._image_prompt, self._file = image_prompt, None if ip_adapter is None else Path(ip_adapter).name
        given = {"ip_adapter": ip_adapter, "image_encoder": image_encoder, "image_prompt": image_prompt}
        if any(value is not None for value in given.values()):
            if missing := [name for name, value in given.items() if value is None]:
                raise ValueError(f"expected {missing[0]} too: an image prompt takes {', '.join(given)}")
            assert ip_adapter is not None
            assert image_encoder is not None
            self.ip_adapter = load_ip_adapter(model, ip_adapter, image_encoder=image_encoder, scale=image_prompt_scale)
        files = [control] if isinstance(control, str | Path) else control
        scaled = [(file, control_scale) if isinstance(file, str | Path) else file for file in files]
        self.controls = [ControlModel(model, file, scale=scale) for file, scale in scaled]
        self._stack: ExitStack | None = None

    def inject(self) -> "Extras":
        """Put all of it into the model. If one cannot be, none is.

        Raises:
            ValueError: If it is there already.
        """
        if self._stack is not None:
            raise ValueError("expected extras that are not injected, but they are")
        with ExitStack() as stack:
            for lora in self.loras:
                stack.enter_context(lora)
            for embedding in self.embeddings:
                stack.enter_context(embedding)
            if self.ip_adapter is not None:
                assert self._image_prompt is not None
                with torch.no_grad():
                    picture = self.ip_adapter.compute_clip_image_embedding(self._image_prompt)
                self.ip_adapter.inject()
                stack.callback(self.ip_adapter.eject)
                stack.enter_context(beside(self._model, self._describe_image_prompt))
                self.ip_adapter.set_clip_image_embedding(picture)
            add_controls(self._model, self.controls)
            stack.callback(remove_controls, self._model, self.controls)
            self._stack = stack.pop_all()
        return self

    def eject(self) -> None:
        """Take all of it out of the model."""
        if self._stack is not None:
            self._stack.close()
            self._stack = None

    def describe(self) -> list[dict[str, Any]]:
        """Return what has to be known to draw the same again: for each, its kind, its file and its scale."""
        described = [extra.describe() for extra in (*self.loras, *self.embeddings)]
        return described if self.ip_adapter is None else [*described, self._describe_image_prompt()]

    def _describe_image_prompt(self) -> dict[str, Any]:
        assert self.ip_adapter is not None
        assert self._image_prompt is not None
        picture = digest_picture(self._image_prompt.convert("RGB"))
        return {"kind": "ip_adapter", "file": self._file, "scale": self.ip_adapter.scale, "picture": picture}

    def __enter__(self) -> "Extras":
        return self.inject()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.eject()
