"""The hub: a server on loopback that answers as the hub does."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from style_aligned.models.checkpoints import CheckpointError
from style_aligned.models.checkpoints.hub import wanted_files
from style_aligned.models.checkpoints.sources import open_checkpoint
from style_aligned.models.extras import load_image_encoder
from tests.models.extras.test_ip_adapter import encoder_folder

__all__ = ["encoder_folder"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(__file__).parents[3]
LOAD = """
import sys, warnings
warnings.simplefilter("ignore")
from style_aligned.models.checkpoints import CheckpointError, load_model, sources
from tests.models.checkpoints.narrow import NARROW_1, NARROW_XL
sources.STABLE_DIFFUSION_XL, sources.STABLE_DIFFUSION_1 = NARROW_XL, NARROW_1
try:
    model = load_model(sys.argv[1])
except CheckpointError as error:
    sys.exit(f"CheckpointError: {error}")
print(sum(weight.double().sum().item() for weight in model.parameters()))
"""
LOAD_IMAGE_ENCODER = """
import sys
from style_aligned.models.checkpoints import CheckpointError
from style_aligned.models.extras import load_image_encoder
try:
    encoder = load_image_encoder(sys.argv[1])
except CheckpointError as error:
    sys.exit(f"CheckpointError: {error}")
print(sum(weight.double().sum().item() for weight in encoder.parameters()))
"""


@dataclass
class Hub:
    """A hub with one repository, `some/model`.

    Attributes:
        folder: Its files.
        requests: The paths that were asked for.
    """

    folder: Path
    endpoint: str = ""
    requests: list[str] = field(default_factory=list[str])


@pytest.fixture
def hub(folders: dict[str, Path]) -> Iterator[Hub]:
    hub = Hub(folder=folders["1"])
    extra = {"README.md": b"hello", "unet/diffusion_pytorch_model.bin": b"pickle", "v1-5.ckpt": b"pickle"}

    def content(name: str) -> bytes | None:
        file = hub.folder / name
        return extra.get(name) or (file.read_bytes() if file.is_file() else None)

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            hub.requests.append(f"{self.command} {path}")
            names = [file.relative_to(hub.folder).as_posix() for file in hub.folder.rglob("*") if file.is_file()]
            if path.startswith("/api/models/some/model/tree/"):
                files = [
                    {"type": "file", "path": name, "size": len(content(name) or b""), "oid": "0"}
                    for name in [*names, *extra]
                ]
                self.answer(200, json.dumps(files).encode(), Content_Type="application/json")
            elif path in ("/api/models/some/model", "/api/models/some/model/revision/main"):
                info = {
                    "id": "some/model",
                    "sha": COMMIT,
                    "siblings": [{"rfilename": name} for name in [*names, *extra]],
                }
                self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
            elif path.startswith("/some/model/resolve/"):
                name = path.removeprefix("/some/model/resolve/").partition("/")[2]
                body = content(name)
                if body is None:
                    self.answer(404, X_Error_Code="EntryNotFound")
                else:
                    etag = hashlib.sha256(body).hexdigest()
                    self.answer(200, body, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
            else:
                self.answer(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def load(
    name: str, cache: Path, endpoint: str, code: str = LOAD, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Load in a process of its own: the hub's library reads its settings when it is imported."""
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    return subprocess.run(
        [sys.executable, "-c", code, name],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **settings, **environment},
        timeout=120,
    )


def test_a_name_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    result = load("some/model", tmp_path, hub.endpoint)
    assert result.returncode == 0, result.stderr
    fetched = {path.split("/", 5)[-1] for path in hub.requests if path.startswith("GET /some/model/resolve/")}
    assert fetched == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "vae/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    assert "100%" in result.stderr  # its progress bars

    hub.requests.clear()  # offline
    assert load("some/model", tmp_path, hub.endpoint, HF_HUB_OFFLINE="1").stdout == result.stdout
    assert not hub.requests


@pytest.mark.parametrize(
    "environment",
    [
        {"HF_HUB_OFFLINE": "1"},
        pytest.param({}, marks=pytest.mark.slow),  # the hub's library tries again for half a minute
    ],
)
def test_no_network(tmp_path: Path, environment: dict[str, str]) -> None:
    result = load("some/model", tmp_path, "http://127.0.0.1:9", **environment)
    assert result.stderr.splitlines()[-1].startswith(
        "CheckpointError: some/model: not in the hub's cache on this machine, and the hub cannot be reached: "
    )


def test_no_such_model(hub: Hub, tmp_path: Path) -> None:
    result = load("some/other", tmp_path, hub.endpoint)
    assert "CheckpointError: some/other: neither a file or folder here, nor a model on the hub" in result.stderr


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        CheckpointError, match=r"some/model: no such file .+, and huggingface_hub.+style-aligned\[hub\]"
    ):
        open_checkpoint("some/model")


def test_the_library_is_not_imported_for_nothing() -> None:
    code = "import sys, style_aligned.models.checkpoints; sys.exit('huggingface_hub' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_which_files_are_wanted() -> None:
    name = "diffusion_pytorch_model"
    files = [f"{part}/{name}{variant}.safetensors" for part in ("unet", "vae") for variant in ("", ".fp16")]
    files += ["model_index.json", "text_encoder/model.fp16.safetensors", "tokenizer/vocab.json", "sdxl.safetensors"]
    assert wanted_files(files, prefer_half=True, where="some/model") == [
        "model_index.json",
        f"unet/{name}.fp16.safetensors",
        f"vae/{name}.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
    ]
    with pytest.raises(CheckpointError, match="some/model: no diffusers model on the hub"):
        wanted_files(["flux1-dev.safetensors"], prefer_half=False, where="some/model")
    with pytest.raises(CheckpointError, match="some/model/unet: the weights are there as pickles alone"):
        wanted_files(["model_index.json", f"unet/{name}.bin"], prefer_half=False, where="some/model")


def test_an_image_encoder_in_a_folder_of_a_repository(hub: Hub, encoder_folder: Path, tmp_path: Path) -> None:
    hub.folder = tmp_path / "repository"
    shutil.copytree(encoder_folder, hub.folder / "models" / "image_encoder")
    cache, name = tmp_path / "cache", "some/model/models/image_encoder"
    result = load(name, cache, hub.endpoint, LOAD_IMAGE_ENCODER)
    assert result.returncode == 0, result.stderr
    expected = sum(weight.double().sum().item() for weight in load_image_encoder(encoder_folder).parameters())
    assert float(result.stdout) == pytest.approx(expected)
    fetched = {path.split("/", 5)[-1] for path in hub.requests if path.startswith("GET /some/model/resolve/")}
    assert fetched == {"models/image_encoder/config.json", "models/image_encoder/model.safetensors"}
    hub.requests.clear()  # offline
    again = load(name, cache, hub.endpoint, LOAD_IMAGE_ENCODER, HF_HUB_OFFLINE="1")
    assert (again.stdout, hub.requests) == (result.stdout, [])
    message = "CheckpointError: some/model/other: no image encoder on the hub (it has no other/config.json)"
    assert message in load("some/model/other", cache, hub.endpoint, LOAD_IMAGE_ENCODER).stderr
