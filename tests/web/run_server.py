"""A page with a tiny model, in a process of its own: the folder, then `auth=…` or `model=broken`, as arguments."""

import sys
from pathlib import Path

from style_aligned.models.mini import Mini
from style_aligned.web.server import listen, serve, serving
from tests.conftest import build_random_mini


def load() -> Mini:
    if "model=broken" in sys.argv:
        raise ValueError("expected a file of weights, got a recipe")
    return build_random_mini()


auth = next((argument.removeprefix("auth=") for argument in sys.argv if argument.startswith("auth=")), None)
with listen("127.0.0.1", 0) as listener, serving(Path(sys.argv[1]), "mini", load, auth=auth) as app:
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)  # noqa: T201
    serve(app, listener)
