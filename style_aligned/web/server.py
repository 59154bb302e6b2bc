"""The server of the page: who may ask, and which files there are to have."""

import base64
import hmac
import io
import os
import shutil
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, Response, StreamingResponse
from PIL import Image
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from style_aligned.files import open_image
from style_aligned.models.model import Model
from style_aligned.sets.records import SetError, check_file
from style_aligned.web.actions import Actions, LazyModel
from style_aligned.web.jobs import Jobs
from style_aligned.web.library import Library
from style_aligned.web.page import CSS, THEME, make_page

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
UPLOADS = ".uploads"  # in the folder, for as long as the page is there
MAX_UPLOAD = 32 << 20  # bytes
MAX_WIDTH = 2048
HEADERS = {
    # nothing is loaded from elsewhere: Gradio's page compiles templates, and has scripts and styles in it
    "content-security-policy": "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;"
    " style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}


@contextmanager
def serving(
    folder: Path,
    model_name: str,
    load: Callable[[], Model],
    *,
    host: str = "127.0.0.1",
    auth: str | None = None,
) -> Generator[FastAPI, None, None]:
    """Make the page, as an application that a server can run.

    Args:
        folder: The folder with the sets. It is made if need be.
        model_name: The name of the model, as sets have it.
        load: Loads the model.
        host: The address that the server listens to.
        auth: `USER:PASSWORD`. None lets everybody in who can reach the server.

    Yields:
        The application. What is drawn as the context ends is cancelled.
    """
    library = Library(folder)
    library.folder.mkdir(parents=True, exist_ok=True)
    uploads = library.folder / UPLOADS
    uploads.mkdir(exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    model = LazyModel(model_name, load)
    jobs = Jobs()
    jobs.submit("", "loading the model", lambda _: (model.get(), None)[1])
    actions = Actions(library, jobs, model)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_files(app, actions)
    gr.mount_gradio_app(
        app,
        make_page(actions),
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        max_file_size=MAX_UPLOAD,
        theme=THEME,
        css=CSS,
        show_error=True,
    )
    if host in ("127.0.0.1", "::1"):  # other sites cannot reach it by a name of theirs
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    app.add_middleware(Guard, auth=auth)
    try:
        yield app
    finally:
        jobs.close()
        shutil.rmtree(uploads, ignore_errors=True)


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve the page until the process is interrupted."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, ws="none")
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ValueError: If the port is in use, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"cannot listen on {host}, port {port}: {reason}: take another --port") from None
    return listener


class Guard:
    """Asks for name and password, keeps uploads small, and has browsers load nothing from elsewhere."""

    def __init__(self, app: ASGIApp, auth: str | None) -> None:
        """Guard an application."""
        self.app = app
        self.expected = None if auth is None else b"Basic " + base64.b64encode(auth.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        if self.expected is not None and not hmac.compare_digest(headers.get(b"authorization", b""), self.expected):
            refusal = Response(status_code=401, headers={"WWW-Authenticate": 'Basic realm="style-aligned"'})
            await refusal(scope, receive, send_with_headers)
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > 2 * MAX_UPLOAD:
            await Response("too large", status_code=413)(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)


def _add_files(app: FastAPI, actions: Actions) -> None:
    """Have the images of sets, their contact sheets and zip files to download. Nothing else of the folder."""

    @app.get("/files/{name}/{file:path}")
    def get_file(name: str, file: str, width: int | None = None) -> Response:  # pyright: ignore[reportUnusedFunction]
        try:
            folder = actions.library.path(name)
            path = folder / check_file(file)
        except SetError as error:
            raise HTTPException(404) from error
        if path.suffix != ".png" or not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise HTTPException(404)
        headers = {"Cache-Control": "private, max-age=31536000, immutable"}
        if width is None:
            return FileResponse(path, media_type="image/png", headers=headers)
        stat = path.stat()
        try:
            small = _make_small(path, max(16, min(width, MAX_WIDTH)), stat.st_mtime_ns, stat.st_size)
        except (OSError, ValueError) as error:
            raise HTTPException(404) from error
        return Response(small, media_type="image/jpeg", headers=headers)

    @app.get("/zip/{name}")
    def get_zip(name: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        try:
            file = actions.zip(name)
        except SetError as error:
            raise HTTPException(404, str(error)) from error
        return StreamingResponse(_blocks(file), media_type="application/zip")


def _blocks(file: Any) -> Generator[bytes, None, None]:
    with file:
        while block := file.read(1 << 20):
            yield block


@lru_cache(maxsize=512)
def _make_small(path: Path, width: int, *_: int) -> bytes:
    image = open_image(path)
    image.thumbnail((width, width), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()
