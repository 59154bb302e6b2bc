"""LoRAs, image prompts, presets and solvers: `--lora`, `--ip-adapter`, `--preset` and `--solver`."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from style_aligned.cli import main
from style_aligned.cli.extras import ExtraOptions, PresetName, parse_scaled
from style_aligned.cluster.worker import Task, Worker, pack, unpack
from style_aligned.files import parse_settings, read_texts
from style_aligned.models.extras.ip_adapter import load_ip_adapter
from style_aligned.styles.style import Style
from tests.cli.conftest import SMALL, assert_error
from tests.models.checkpoints.conftest import folder, folders, kind, narrow, pipeline, pipelines
from tests.models.checkpoints.test_parts import random
from tests.models.extras.test_control_models import controlnet, narrow_controlnet, t2i_adapter
from tests.models.extras.test_ip_adapter import encoder_folder, random_ip_adapter
from tests.models.extras.test_lora import kohya, random_lora, unet_only

__all__ = [
    "controlnet", "encoder_folder", "folder", "folders", "kind", "narrow", "narrow_controlnet", "pipeline", "pipelines",
]  # fmt: skip

pytestmark = pytest.mark.parametrize("kind", ["1"], indirect=True)


class Program:
    """The command line with a narrow model, as it loads it."""

    def __init__(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.model = model
        self.capsys = capsys

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        code = main([*map(str, arguments)])
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err

    def generate(self, *arguments: str | Path) -> tuple[int, str, str]:
        return self("generate", "a fox", "a cat", *SMALL, "--model", self.model, *arguments)


@pytest.fixture
def run(
    kind: str, folder: Path, pipeline: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Program:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("ink", "neon"):
        changes = unet_only(random_lora(pipeline))
        save_file({key: t.contiguous() for key, t in kohya(changes, kind).items()}, f"{name}.safetensors")
    return Program(folder, capsys)


def find(file: str) -> Path:
    """Find the image of a set whose name ends so."""
    folder, _, name = file.partition("/")
    (found,) = Path(folder).glob(f"*-{name}")
    return found


def adapters_of(file: str) -> Any:
    settings = parse_settings(read_texts(find(file))) or {}
    return settings["model"].get("adapters")


@pytest.mark.slow
def test_a_set_remembers_its_loras(run: Program) -> None:
    assert run.generate("--output", "plain")[0] == 0
    result = run.generate("--lora", "ink.safetensors:0.3", "--lora", "neon.safetensors", "--output", "inks")
    assert result[0] == 0, result
    expected = [
        {"kind": "lora", "file": "ink.safetensors", "scale": 0.3},
        {"kind": "lora", "file": "neon.safetensors", "scale": 1.0},
    ]
    assert adapters_of("inks/a-cat.png") == expected
    assert adapters_of("plain/a-cat.png") is None
    assert find("inks/a-cat.png").read_bytes() != find("plain/a-cat.png").read_bytes()
    loras = [[str(Path("ink.safetensors").resolve()), 0.3], [str(Path("neon.safetensors").resolve()), 1.0]]
    assert json.loads(Path("inks/set.json").read_text())["extras"] == {"loras": loras}
    assert "extras" not in json.loads(Path("plain/set.json").read_text())

    # added to, drawn again, and taken as the style of another set, it has them without a word
    assert run("add", "inks", "a dog")[0] == 0
    assert adapters_of("inks/a-dog.png") == expected
    assert run("reroll", "inks", "cat")[0] == 0
    assert adapters_of("inks/a-cat.png") == expected
    assert run("generate", "inks", "a lamp", "--output", "more")[0] == 0
    assert adapters_of("more/a-lamp.png") == expected
    assert run("add", "more", "a dog")[0] == 0


@pytest.mark.slow
def test_a_set_is_not_continued_with_other_loras(run: Program) -> None:
    assert run.generate("--lora", "ink.safetensors:0.3", "--output", "inks")[0] == 0
    for lora in ("neon.safetensors:0.3", "ink.safetensors:0.4"):
        pattern = (
            "was made with other adapters: give those by --lora, --embedding and --ip-adapter, or --force"
            rf" \(expected a model with ink.safetensors:0.3, as the style's, got one with {lora}\)"
        )
        assert_error(run("add", "inks", "a dog", "--lora", lora), pattern)
    style = "inks/style.safetensors"
    command = ["generate", style, "a dog", "--model", run.model, "--output", "dogs"]
    assert_error(run(*command), "as the style's, got one with no adapters")
    assert run(*command, "--lora", "ink.safetensors:0.3")[0] == 0
    # as in the paper's experiment: the reference without, the targets with a LoRA
    assert run("style", "a fox", "--model", run.model, *SMALL, "--output", "fox.safetensors")[0] == 0
    command = ["generate", "fox.safetensors", "a dog", "--model", run.model, "--output", "ink dogs", "--lora"]
    assert_error(run(*command, "ink.safetensors"), "with no adapters, as the style's, got one with ink.safetensors:1")
    code, _, error = run(*command, "ink.safetensors", "--force")
    assert (code, "other weights or adapters: images will differ" in error) == (0, True)
    assert adapters_of("ink dogs/a-dog.png") == [{"kind": "lora", "file": "ink.safetensors", "scale": 1.0}]


@pytest.mark.slow
def test_a_set_remembers_its_words(run: Program, pipeline: Any) -> None:
    save_file({"emb_params": random(2, pipeline.text_encoder.config.hidden_size)}, "owl.safetensors")
    assert run.generate("--output", "plain")[0] == 0
    assert run.generate("--embedding", "owl.safetensors:Cat", "--output", "owls")[0] == 0
    expected = [{"kind": "embedding", "file": "owl.safetensors", "token": "cat"}]
    assert adapters_of("owls/a-cat.png") == expected
    assert find("owls/a-cat.png").read_bytes() != find("plain/a-cat.png").read_bytes()
    words = [[str(Path("owl.safetensors").resolve()), "Cat"]]
    assert json.loads(Path("owls/set.json").read_text())["extras"] == {"embeddings": words}
    result = run("add", "owls", "a dog and a cat")
    assert result[0] == 0, result
    assert adapters_of("owls/a-dog-and-a-cat.png") == expected
    message = r"expected a model with owl.safetensors:cat, as the style's, got one with owl.safetensors:owl\)"
    assert_error(run("add", "owls", "an owl", "--embedding", "owl.safetensors"), message)


@pytest.mark.slow
def test_an_image_prompt(run: Program, pipeline: Any, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(random_ip_adapter(pipeline.unet, plus=False), "ip.safetensors")
    for color in ("red", "blue"):
        Image.new("RGB", (56, 56), color).save(f"{color}.png")

    def load(*arguments: Any, **options: Any) -> Any:
        adapter = load_ip_adapter(*arguments, **options)
        preprocess = adapter.preprocess_image
        adapter.preprocess_image = lambda image: preprocess(image, size=(56, 56))  # pyright: ignore
        return adapter

    monkeypatch.setattr("style_aligned.models.extras.beside.load_ip_adapter", load)
    prompt = ["--ip-adapter", "ip.safetensors", "--image-encoder", encoder_folder, "--image-prompt"]
    result = run.generate(*prompt, "red.png", "--image-prompt-scale", "0.8", "--output", "red")
    assert result[0] == 0, result
    assert run("add", "red", "a dog")[0] == 0
    (described,) = adapters_of("red/a-dog.png")
    assert (described["kind"], described["file"], described["scale"]) == ("ip_adapter", "ip.safetensors", 0.8)
    assert_error(
        run("add", "red", "a lamp", *prompt, "blue.png", "--image-prompt-scale", "0.8"), "was made with other adapters"
    )


@pytest.mark.usefixtures("narrow_controlnet")
def test_each_image_has_a_control_picture(run: Program, controlnet: Any) -> None:
    save_file({key: tensor.contiguous() for key, tensor in controlnet.state_dict().items()}, "canny.safetensors")
    for number, name in enumerate(("boat", "car")):
        Image.effect_noise((64, 64), 50 + 100 * number).save(f"{name}.png")
    control = ["--control", "canny.safetensors:0.7", "--control-image"]
    assert run.generate("--output", "plain")[0] == 0
    result = run("generate", "plain", "a boat", *control, "boat.png", "--output", "boats")
    assert result[0] == 0, result
    extras = json.loads(Path("boats/set.json").read_text())["extras"]
    assert extras == {"control": [[str(Path("canny.safetensors").resolve()), 0.7]]}

    def record(prompt: str) -> Any:
        return next(i for i in json.loads(Path("boats/set.json").read_text())["images"] if i["prompt"] == prompt)

    assert record("a boat")["inputs"] == {"control": [str(Path("boat.png").resolve())]}
    assert_error(run("add", "boats", "a car"), "expected a control picture for 'a car': give --control-image, or contr")
    Path("more.jsonl").write_text('{"prompt": "a car", "control": "car.png"}')
    assert run("add", "boats", "--prompts", "more.jsonl")[0] == 0
    assert record("a car")["inputs"] == {"control": [str(Path("car.png").resolve())]}
    settings = [parse_settings(read_texts(find(f"boats/{name}.png"))) or {} for name in ("a-boat", "a-car")]
    assert settings[0]["control"] != settings[1]["control"]
    before = find("boats/a-boat.png").read_bytes()
    assert run("reroll", "boats", "boat")[0] == 0
    assert record("a boat")["inputs"] == {"control": [str(Path("boat.png").resolve())]}
    assert find("boats/a-boat.png").read_bytes() != before
    # without it, the same seed gives another image
    assert run("generate", "plain", "a boat", "--output", "plain boats")[0] == 0
    assert find("plain boats/a-boat.png").read_bytes() != before
    assert_error(
        run("add", "plain", "a car", "--control-image", "car.png"), "expected --control beside the control pic"
    )
    assert_error(run("add", "boats", "a lamp", "--control-image", "no.png"), "expected --control-image to be a picture")


@pytest.mark.usefixtures("narrow_controlnet")
def test_several_control_models(run: Program, controlnet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({key: tensor.contiguous() for key, tensor in controlnet.state_dict().items()}, "canny.safetensors")
    save_file({key: tensor.contiguous() for key, tensor in t2i_adapter("1").state_dict().items()}, "t2i.safetensors")
    for number, name in enumerate(("boat", "car")):
        Image.effect_noise((64, 64), 50 + 100 * number).save(f"{name}.png")
    control = ["--control", "canny.safetensors:0.7", "--control", "t2i.safetensors"]
    images = ["--control-image", "boat.png", "--control-image", "car.png"]
    paths = [str(Path(f"{name}.png").resolve()) for name in ("boat", "car")]

    def records() -> Any:
        return json.loads(Path("boats/set.json").read_text())["images"]

    assert run("style", "a fox", "--model", run.model, *SMALL, "--output", "fox.safetensors")[0] == 0
    start = ["generate", "fox.safetensors", "a boat", "--model", run.model, "--output", "boats"]
    with monkeypatch.context() as patch:
        patch.setattr("style_aligned.cli.library.load_model", None)
        Path("bad.jsonl").write_text('{"prompt": "a car", "control": ["car.png", "boat.png", "car.png"]}')
        for arguments, count in (([*control, *images[:2]], 1), ([*control, *images, *images], 4)):
            pattern = f"expected 2 control pictures for 'a boat', one for each --control, got {count}"
            assert_error(run(*start, *arguments), pattern)
        assert_error(run(*start, *control, *images, "--prompts", "bad.jsonl"), "expected 2 .* 'a car', .*, got 3")
        assert_error(run(*start, *control), "expected a control picture for 'a boat'")
        assert_error(run(*start, *control, "--control-image", "no.png"), "expected --control-image to be a picture")
        assert not Path("boats").exists()

    result = run(*start, *control, *images)
    assert result[0] == 0, result
    extras = json.loads(Path("boats/set.json").read_text())["extras"]
    files = [str(Path(f"{name}.safetensors").resolve()) for name in ("canny", "t2i")]
    assert extras == {"control": [[files[0], 0.7], [files[1], 1.0]]}
    assert records()[0]["inputs"] == {"control": paths}
    Path("more.jsonl").write_text('{"prompt": "a car", "control": ["car.png", "boat.png"]}')
    assert run("add", "boats", "--prompts", "more.jsonl")[0] == 0
    assert records()[1]["inputs"] == {"control": paths[::-1]}
    settings = [parse_settings(read_texts(find(f"boats/{name}.png"))) or {} for name in ("a-boat", "a-car")]
    assert settings[0]["control"] == settings[1]["control"][::-1]
    assert len(settings[0]["control"]) == 2
    with monkeypatch.context() as patch:
        patch.setattr("style_aligned.cli.library.load_model", None)
        assert_error(run("reroll", "boats", "boat", *images[:2]), "expected 2 control pictures for 'a boat', .* got 1")
    assert run("reroll", "boats", "boat", *images[2:], *images[:2])[0] == 0
    assert records()[0]["inputs"] == {"control": paths[::-1]}


@pytest.mark.usefixtures("narrow_controlnet")
def test_a_set_with_the_record_of_a_single_control_model_goes_on(run: Program, controlnet: Any) -> None:
    save_file({key: tensor.contiguous() for key, tensor in controlnet.state_dict().items()}, "canny.safetensors")
    Image.effect_noise((64, 64), 50).save("boat.png")
    control = ["--control", "canny.safetensors:0.7", "--control-image", "boat.png"]
    assert run.generate(*control, "--output", "boats")[0] == 0
    path = Path("boats/set.json")
    new = json.loads(path.read_text())
    old = json.loads(path.read_text())
    old["extras"]["control"] = old["extras"]["control"][0]
    for image in old["images"]:
        image["inputs"]["control"] = image["inputs"]["control"][0]
    path.write_text(json.dumps(old))
    find("boats/a-cat.png").unlink()
    code, _, error = run("add", "boats")
    assert (code, "was gone, and was drawn again" in error) == (0, True)
    again = json.loads(path.read_text())
    assert again["extras"] == new["extras"]
    assert again["images"][0]["inputs"] == new["images"][0]["inputs"]


@pytest.mark.usefixtures("narrow_controlnet")
def test_a_reference_with_a_control_picture(run: Program, controlnet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({key: tensor.contiguous() for key, tensor in controlnet.state_dict().items()}, "canny.safetensors")
    for number, name in enumerate(("boat", "car")):
        Image.effect_noise((64, 64), 50 + 100 * number).save(f"{name}.png")
    control = ["--control", "canny.safetensors:0.7", "--control-image", "car.png"]
    own = ["--reference-control", "boat.png"]
    with monkeypatch.context() as patch:
        patch.setattr("style_aligned.cli.library.load_model", None)
        for options, pattern in (
            ([*control, *own, *own], "expected a --reference-control for each of 1 --control, got 2"),
            ([*own], "expected a --reference-control for each of 0 --control, got 1"),
            ([*control, "--reference-control", "no.png"], "expected --reference-control to be a picture, got 'no.png'"),
        ):
            assert_error(run.generate(*options, "--output", "boats"), pattern)
        arguments = ["generate", "boat.png", "a cat", "--model", run.model, *control, *own, "--output", "boats"]
        assert_error(run(*arguments), "expected no --reference-control beside a picture as the reference")
        assert not Path("boats").exists()

    result = run.generate(*control, *own, "--output", "boats")
    assert result[0] == 0, result
    assert run.generate(*control, "--output", "plain")[0] == 0
    (picture,) = (parse_settings(read_texts(Path("boats/reference.png"))) or {})["reference_control"]
    assert (picture["file"], picture["scale"]) == ("canny.safetensors", 0.7)
    assert find("boats/a-cat.png").read_bytes() != find("plain/a-cat.png").read_bytes()
    assert run("add", "boats", "a dog", "--control-image", "car.png")[0] == 0
    assert run.generate(*control, *own, "--output", "boats")[0] == 0
    for output in ("boats", "plain"):
        result = run.generate(*control, "--reference-control", "car.png", "--output", output)
        assert_error(result, f"{output} holds a set with another reference control: take another --output")
    # the style is not continued without it unnoticed
    style = ["generate", "boats/style.safetensors", "a lamp", "--model", run.model, "--output", "lamps"]
    assert_error(
        run(*style), "expected a model with the control models canny.safetensors:0.7, as the style's reference"
    )
    assert_error(run(*style, *control, *own), "expected no --reference-control beside a style that is there")
    assert run(*style, *control)[0] == 0


@pytest.mark.usefixtures("narrow_controlnet")
def test_control_pictures_reach_workers(run: Program, controlnet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker writes the same files: those of a set whose prompts are in a .csv, with pictures for two models."""
    save_file({key: tensor.contiguous() for key, tensor in controlnet.state_dict().items()}, "canny.safetensors")
    save_file({key: tensor.contiguous() for key, tensor in t2i_adapter("1").state_dict().items()}, "t2i.safetensors")
    for number, name in enumerate(("boat", "car")):
        Image.effect_noise((64, 64), 50 + 100 * number).save(f"{name}.png")
    control = ["--control", "canny.safetensors:0.7", "--control", "t2i.safetensors"]
    own = ["--reference-control", "boat.png", "--reference-control", "car.png"]
    Path("more.csv").write_text("prompt,control\na boat,boat.png | car.png\na car,car.png|boat.png\n")
    arguments = ["generate", "--reference", "a fox", *SMALL, "--model", run.model, "--prompts", "more.csv"]
    result = run(*arguments, *control, *own, "--output", "boats", "--batch-size", "1")
    assert result[0] == 0, result
    state = json.loads(Path("boats/set.json").read_text())
    paths = [str(Path(f"{name}.png").resolve()) for name in ("boat", "car")]
    assert [image["inputs"]["control"] for image in state["images"]] == [paths, paths[::-1]]

    def get(content: Any) -> Any:
        return content

    monkeypatch.setattr("style_aligned.cluster.worker.import_ray", lambda: SimpleNamespace(get=get))
    worker = Worker(str(run.model), {"device": "cpu"}, extras=state["extras"])
    worker.start()
    style = pack(Style.load("boats/style.safetensors"))
    made = worker.make_style({"prompt": "a fox", "size": (64, 64), "num_inference_steps": 2, "control": paths})
    assert unpack(made).control == unpack(style).control
    images = [(image["prompt"], image["seed"], image["inputs"]) for image in state["images"]]
    files, _ = worker.draw(Task([style], images, is_aligned=True, batch_size=1, bank_device=None))
    assert files == [find(f"boats/{name}.png").read_bytes() for name in ("a-boat", "a-car")]


@pytest.mark.slow
def test_presets_and_solvers(run: Program) -> None:
    assert (
        run("generate", "a fox", "a cat", "--size", "64", "--model", run.model, "--preset", "lcm", "--output", "lcm")[0]
        == 0
    )
    style = Style.load("lcm/style.safetensors")
    assert (style.num_inference_steps, style.condition_scale, style.solver["name"]) == (4, 0.0, "LCMSolver")
    assert run("add", "lcm", "a dog")[0] == 0
    assert run.generate("--solver", "euler", "--guidance", "0", "--output", "euler")[0] == 0
    style = Style.load("euler/style.safetensors")
    assert (style.num_inference_steps, style.condition_scale, style.solver["name"]) == (2, 0, "Euler")
    assert run("add", "euler", "a dog")[0] == 0


def test_what_is_wrong_is_said_before_anything_is_loaded(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("style_aligned.cli.library.load_model", None)
    for options, pattern in (
        (
            ["--lora", "no.safetensors:0.5"],
            "--lora no.safetensors:0.5: expected a file, got 'no.safetensors', which is",
        ),
        (["--lora", "ink.safetensors:much"], "expected a number as the scale behind the colon, got 'much'"),
        (["--lora", "ink.safetensors:nan"], "expected the scale of --lora to be a finite number"),
        (["--image-prompt", "red.png"], "expected --ip-adapter beside --image-prompt: an image prompt takes"),
        (["--image-prompt-scale", "0.5"], "expected no --image-prompt-scale without --image-prompt"),
        (["--preset", "lcm", "--solver", "dpm"], "expected no --solver beside --preset, which has one"),
    ):
        assert_error(run.generate(*options, "--output", "set"), pattern)
    assert not Path("set").exists()


def test_what_does_not_fit_leaves_nothing(run: Program) -> None:
    assert_error(run.generate("--lora", "ink.safetensors", "--lora", "ink.safetensors", "--output", "set"), "LoRA once")
    assert not Path("set").exists()


def test_a_lora_and_its_scale(kind: str) -> None:
    assert parse_scaled("pixel.safetensors:0.8", "--lora") == ("pixel.safetensors", 0.8)
    assert parse_scaled("C:/pixel.safetensors", "--lora") == ("C:/pixel.safetensors", 1.0)
    assert ExtraOptions(preset=PresetName.lcm).resolve({"solver": "dpm"}) == {"preset": "lcm"}
    assert ExtraOptions().resolve({}, {"solver": "dpm"}, {"solver": "euler"}) == {"solver": "dpm"}
