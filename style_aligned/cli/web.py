"""The command `web`: the page in the browser."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from style_aligned.cli import inputs
from style_aligned.cli.options import ModelOptions, resolve_model, set_model_name, takes

HOSTS = {"no": "127.0.0.1", "network": "0.0.0.0"}
PORT = 7860


@takes(model=ModelOptions)
def web(
    *,
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="The folder of the sets, or a set.", show_default=False)
    ] = Path(),
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="NUMBER", help="The port. 0 takes any that is free.")
    ] = PORT,
    share: Annotated[
        str,
        typer.Option(
            metavar="WITH",
            help="Who may open the page: no (this machine), network (all who reach it), or an address to listen on.",
        ),
    ] = "no",
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="USER:PASSWORD",
            envvar="STYLE_ALIGNED_AUTH",
            show_envvar=True,
            help="What the browser asks for. Needed unless the page is for this machine.",
        ),
    ] = None,
    model: ModelOptions,
) -> None:
    """Open a page in the browser to make sets, on the same folders as the other commands.

    Example: style-aligned web sets
    """
    host = _check_host(share)
    if auth is not None and re.fullmatch(r"[^:\s]+:\S{4,}", auth) is None:
        raise ValueError("expected --auth to be USER:PASSWORD, with a password of at least 4 characters")
    if auth is None and host not in ("127.0.0.1", "::1"):
        raise ValueError(f"expected --auth USER:PASSWORD with --share {share}: others can reach the page")
    if find_spec("gradio") is None:
        raise ValueError("the page needs gradio: pip install 'style-aligned[web]'")
    inputs.check_output_folder(folder)

    from style_aligned.cli import library
    from style_aligned.web.server import listen, serve, serving

    name = resolve_model(model.model)
    with listen(host, port) as listener:
        number = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        with serving(
            folder, set_model_name(name), lambda: library.load_model(name, model), host=host, auth=auth
        ) as app:
            typer.echo(f"http://{shown}:{number}: the page for {folder.resolve()}. Control-C ends it.")
            serve(app, listener)


def _check_host(share: str) -> str:
    import ipaddress

    if share in HOSTS:
        return HOSTS[share]
    try:
        return str(ipaddress.ip_address(share))
    except ValueError:
        raise ValueError(f"expected --share to be no, network or an IP address, got {share!r}") from None
