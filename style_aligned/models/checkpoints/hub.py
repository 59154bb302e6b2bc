"""Models from the Hugging Face hub: only the files needed, through its own cache."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.selection import PARTS, SETTINGS, select_weights


def is_hub_name(name: str) -> bool:
    """Say whether a name looks like a repository on the hub.

    Example:
        >>> is_hub_name("stabilityai/stable-diffusion-xl-base-1.0"), is_hub_name("models/sdxl.safetensors")
        (True, False)
    """
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name)) and not name.endswith((".safetensors", ".ckpt"))


def download(
    name: str,
    select: Callable[[list[str]], list[str]],
    settings: Sequence[str] = ("model_index.json", "config.json"),
) -> Path:
    """Fetch the files of a repository that are wanted and not in the hub's cache yet.

    The hub's own environment variables hold: `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`.

    Args:
        name: The repository, as `"owner/name"`.
        select: Returns the files that are wanted, of the paths of all.
        settings: Without network, what was fetched before is known by the first of these files that is there.

    Returns:
        The folder with the files, as they lie in the repository.

    Raises:
        CheckpointError: Without `huggingface_hub`, without network, or if the hub does not give such a model.
    """
    try:
        from huggingface_hub import (
            HfApi,
            snapshot_download,  # pyright: ignore[reportUnknownVariableType]
            try_to_load_from_cache,
        )
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
    except ImportError as error:
        raise CheckpointError(
            f"{name}: no such file or folder, and huggingface_hub, which would look for it on the hub, is not "
            "installed: pip install 'style-aligned[hub]'"
        ) from error

    try:
        files = HfApi().list_repo_files(repo_id=name)
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: neither a file or folder here, nor a model on the hub that you may read "
            "(for private and gated models, log in first: hf auth login)"
        ) from error
    except HfHubHTTPError as error:
        raise CheckpointError(f"{name}: the hub refused to list its files: {_first_line(error)}") from error
    except Exception as error:  # no network, or offline mode: the library in use says so in its own way
        for file in settings:
            cached = try_to_load_from_cache(repo_id=name, filename=file)
            if isinstance(cached, str):
                return Path(cached).parents[file.count("/")]
        raise CheckpointError(
            f"{name}: not in the hub's cache on this machine, and the hub cannot be reached: {_first_line(error)}"
        ) from error

    patterns = select(files)
    try:
        return Path(snapshot_download(repo_id=name, allow_patterns=patterns))
    except Exception as error:
        raise CheckpointError(f"{name}: the download stopped: {_first_line(error)}") from error


def wanted_files(files: list[str], *, prefer_half: bool, where: str) -> list[str]:
    """Select the files to fetch from a repository.

    Args:
        files: The paths of all of its files.
        prefer_half: Whether to prefer the fp16 variant of the weights.
        where: The name of the repository, for messages.

    Raises:
        CheckpointError: If the repository holds no diffusers model.
    """
    if "model_index.json" not in files:
        raise CheckpointError(
            f"{where}: no diffusers model on the hub (it has no model_index.json); download one of its files and give "
            "its path instead"
        )
    wanted = [file for file in SETTINGS if file in files]
    for part in PARTS:
        names = [file.removeprefix(f"{part}/") for file in files if file.startswith(f"{part}/")]
        if names:
            selected = select_weights(names, part, prefer_half=prefer_half, where=f"{where}/{part}")
            wanted.extend(f"{part}/{name}" for name in selected)
    return wanted


def wanted_autoencoder_files(files: list[str], *, prefer_half: bool, where: str) -> list[str]:
    """Select the files of an autoencoder, of a whole model's or of one that is alone in its repository.

    Args:
        files: The paths of all of its files.
        prefer_half: Whether to prefer the fp16 variant of the weights.
        where: The name of the repository, for messages.

    Raises:
        CheckpointError: If the repository holds none.
    """
    folder = "vae/" if "vae/config.json" in files else ""
    names = [file.removeprefix(folder) for file in files if file.startswith(folder)]
    selected = select_weights(names, "vae", prefer_half=prefer_half, where=f"{where}/{folder}".removesuffix("/"))
    settings = [file for file in ("model_index.json", f"{folder}config.json") if file in files]
    return [*settings, *(folder + name for name in selected)]


def download_image_encoder(name: str) -> Path:
    """Fetch an image encoder of transformers.

    Args:
        name: The repository, or a folder in it, as `"owner/name/folder"`.

    Returns:
        The folder with the files.

    Raises:
        CheckpointError: As `download` does, or if there is none.
    """
    owner, repository, *folders = name.split("/")
    files = ["/".join((*folders, file)) for file in ("config.json", "model.safetensors")]

    def select(there: list[str]) -> list[str]:
        if missing := [file for file in files if file not in there]:
            raise CheckpointError(f"{name}: no image encoder on the hub (it has no {missing[0]})")
        return files

    return download(f"{owner}/{repository}", select, files[:1]).joinpath(*folders)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
