"""The server: who may ask, which files there are, and the same actions for programs."""

import base64
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from style_aligned.sets.create import new_set
from style_aligned.sets.image_set import open_set, read_image_set
from style_aligned.sets.sources import Source
from style_aligned.web.server import MAX_UPLOAD, listen
from tests.web.conftest import Served, serve

SMALL = {"num_inference_steps": 2, "size": [64, 64], "batch_size": 1}


def get(url: str, **headers: str) -> tuple[int, bytes]:
    """Ask for a page. Returns the status and the content."""
    try:
        with urlopen(Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})) as page:
            return page.status, page.read()
    except HTTPError as error:
        return error.code, error.read()


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    client = Client(served.url, verbose=False, download_files=False)
    yield client
    client.close()


def test_programs_can_do_what_people_do(client: Client, served: Served) -> None:
    made = client.predict("a fox, ink", ["a cat, ink", "a dog, ink"], "script", "", SMALL, {}, api_name="/create")
    assert [(image["name"], image["drawn"]) for image in made["images"]] == [
        ("001-a-cat-ink", True),
        ("002-a-dog-ink", True),
    ]
    assert made["job"]["state"] == "done"
    assert client.predict(api_name="/sets") == ["script"]
    added = client.predict("script", ["a bird, ink"], {"scale": 0.5}, api_name="/add")
    assert len(added["images"]) == 3
    rerolled = client.predict("script", "cat", 77, api_name="/reroll")
    assert rerolled["images"][0]["seed"] == 77
    restored = client.predict("script", "cat", None, api_name="/restore")
    assert restored["images"][0]["seed"] == 1
    client.predict("script", "cat", "the cat", api_name="/rename")
    client.predict("script", "dog", api_name="/compare")
    left = client.predict("script", "bird", api_name="/remove")
    assert [image["name"] for image in left["images"]] == ["the cat", "002-a-dog-ink"]
    assert (served.folder / "script/unaligned/002-a-dog-ink.png").is_file()
    status, content = get(served.url + left["images"][0]["file"])
    assert (status, content) == (200, (served.folder / "script/the cat.png").read_bytes())
    assert get(served.url + left["zip"])[1].startswith(b"PK")
    with pytest.raises(AppError, match="no image is called 'horse'"):
        client.predict("script", "horse", None, api_name="/reroll")
    with pytest.raises(AppError, match=r"there is no set '\.\./script' here"):
        client.predict("../script", api_name="/show")


@pytest.mark.parametrize(
    "path",
    [
        "files/own/set.json",
        "files/own/style.safetensors",
        "files/own/..%2F..%2Fsecret.png",
        "files/own/../../secret.png",
        "files/..%2Fown/x.png",
        "files/own/%2Fetc%2Fpasswd",
        "files/own/linked.png",
        "files/other/x.png",
        "zip/other",
        "zip/own",
        "gradio_api/file=SECRET",
        "gradio_api/file=SET",
    ],
)
def test_nothing_but_the_images_of_sets_is_handed_out(served: Served, path: str) -> None:
    secret = served.folder.parent / "secret.png"
    secret.write_bytes(b"secret")
    if not (served.folder / "own").exists():
        with open_set(served.folder / "own", new=new_set(Source("prompt", "a fox"), {})):
            pass
        (served.folder / "own/linked.png").symlink_to(secret)
    path = path.replace("SECRET", quote(str(secret))).replace("SET", quote(str(served.folder / "own/set.json")))
    status, content = get(served.url + path)
    assert status in (400, 403, 404, 422)
    assert b"secret" not in content.replace(b"secret.png", b"")


def test_other_sites_cannot_use_it(served: Served) -> None:
    with urlopen(served.url) as page:
        assert "default-src 'self'" in page.headers["content-security-policy"]
    assert get(served.url, Host="evil.example")[0] == 400
    assert get(served.url, Content_Length=str(10 * MAX_UPLOAD))[0] == 413


def test_others_need_the_password(tmp_path: Path) -> None:
    with serve(tmp_path, "auth=anna:secret") as page:
        for path in ("", "config", "files/x/y.png", "gradio_api/info"):
            assert get(page.url + path)[0] == 401
        wrong, right = (base64.b64encode(text).decode() for text in (b"anna:wrong", b"anna:secret"))
        assert get(page.url, Authorization=f"Basic {wrong}")[0] == 401
        assert get(page.url, Authorization=f"Basic {right}")[0] == 200
    assert not list(tmp_path.iterdir())  # no uploads are left


def test_a_model_that_does_not_load_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    with serve(tmp_path, "model=broken") as page:
        client = Client(page.url, verbose=False)
        with pytest.raises(AppError, match=r"the model mini does not load: expected a file .* another --model"):
            client.predict("a fox, ink", ["a cat"], "kept", "", SMALL, {}, api_name="/create")
        client.close()
    assert read_image_set(tmp_path / "kept").state.reference.prompt == "a fox, ink"


def test_a_port_in_use_is_said() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1, port {port}: address already in use: take"):
            listen("127.0.0.1", port)
