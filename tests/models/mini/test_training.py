"""The training's own parts: what is recorded, averaged, saved and resumed is what it should be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.text_encoder import TextEncoderWithPooling
from safetensors.torch import load_file

from scripts.mini_data.captions import vocabulary
from scripts.mini_data.sources import SourceError
from scripts.mini_training.batches import Batches, BatchSettings, Tokens
from scripts.mini_training.checkpoints import Average, load_checkpoint, save_checkpoint
from scripts.mini_training.dataset import Drawings
from scripts.mini_training.held_out import HeldOutLoss
from scripts.mini_training.latents import encode_drawings, load_latents
from scripts.mini_training.objective import Networks, NoiseLevels, embed_tokens, make_objective
from scripts.mini_training.parallel import Workers, count_workers
from scripts.mini_training.tracing import record
from scripts.train_mini import main, parse
from style_aligned.models.mini import MiniAutoencoder, load_mini
from style_aligned.models.mini.model import WEIGHTS
from style_aligned.models.mini.text_encoder import MiniTokenizer

WORDS = ["a", "fox", "neon", "sign"]
TEXTS = ["a fox", "a fox, neon sign", "", "zebra"]


@pytest.fixture(scope="module")
def networks() -> Networks:
    torch.manual_seed(0)
    return Networks(WORDS, "cpu")


def batch(networks: Networks, width: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    latents, noise = torch.randn(2, 4, 4, 16, width, generator=generator)
    return latents, noise, torch.tensor([1, 300, 700, 999]), networks.text_encoder.tokenizer(TEXTS)


def batches_of(*hands: tuple[str, str], **settings: Any) -> Batches:
    """Batches of drawings, each of a style on a ground, whose latents are their number, or its negative mirrored."""
    records = [
        {"concept": "fox", "style": style, "foundry": "noto", "factors": {"ground": ground}, "split": "train"}
        for style, ground in hands
    ]
    numbers = torch.arange(1.0, len(records) + 1).view(-1, 1, 1, 1).expand(-1, 4, 2, 2)
    drawings = Drawings(np.zeros((len(records), 1, 1, 3), np.uint8), records, ["fox"], ["neon sign"])
    latents = torch.stack([numbers, -numbers])
    generator = torch.Generator().manual_seed(0)
    indices = list(range(len(records)))
    return Batches(drawings, latents, indices, MiniTokenizer(WORDS), generator, BatchSettings(**settings), seed=0)


def test_latents_of_other_drawings_are_refused(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, size=(2, 64, 64, 3), dtype=np.uint8)
    records = [{"concept": "fox", "style": style, "split": "train"} for style in ("neon sign", "ink")]
    drawings = Drawings(pictures, records, ["fox"], ["neon sign", "ink"])
    path = tmp_path / "latents.safetensors"
    encode_drawings(MiniAutoencoder(), drawings, path)
    latents = load_latents(path, drawings, [1])
    assert latents.shape == (2, 1, 4, 8, 8)
    assert not torch.equal(latents[0], latents[1])
    others = Drawings(pictures, records[::-1], ["fox"], ["neon sign", "ink"])
    with pytest.raises(ValueError, match="to be of the drawings of --data, got those of others"):
        load_latents(path, others, [1])


def test_a_sheet_holds_two_drawings_by_one_hand() -> None:
    red, blue, other = ("neon sign", "red"), ("neon sign", "blue"), ("pixel art", "red")
    batches = batches_of(red, blue, red, other, red, batch_size=64)
    latents, tokens = batches.sheets()
    assert latents.shape == (32, 4, 2, 4)
    assert tokens.shape[0] == 32
    left, right = latents[:, 0, 0, 0], latents[:, 0, 0, -1]
    assert (left * right > 0).all()  # mirrored both or none
    pairs = {(abs(int(a)), abs(int(b))) for a, b in zip(left, right, strict=True)}
    assert pairs == {(1, 3), (3, 1), (1, 5), (5, 1), (3, 5), (5, 3)}


@pytest.mark.parametrize(("share", "widths"), [(0.0, {2}), (1.0, {4}), (0.5, {2, 4})])
def test_sheets_come_in_their_share(share: float, widths: set[int]) -> None:
    batches = batches_of(("neon sign", "red"), ("neon sign", "red"), batch_size=4, sheets=share)
    seen = {batches.next(step)[0].shape[-1] for step in range(20)}
    assert seen == widths


def test_sheets_of_drawings_that_are_all_by_different_hands_are_refused() -> None:
    with pytest.raises(ValueError, match="expected two drawings of the same style, foundry and factors"):
        batches_of(("neon sign", "red"), ("neon sign", "blue"))


def test_batches_go_on_where_they_were() -> None:
    def start() -> Batches:
        return batches_of(("neon sign", "red"), ("bold ink", "red"), ("neon sign", "red"), batch_size=4, unknown=0.5)

    batches = start()
    for step in range(3):
        batches.next(step)
    state = batches.generator.get_state()
    expected = [batches.next(step) for step in range(3, 8)]
    resumed = start()
    resumed.generator.set_state(state)
    for tensors, others in zip(expected, (resumed.next(step) for step in range(3, 8)), strict=True):
        assert all(torch.equal(tensor, other) for tensor, other in zip(tensors, others, strict=True))


def test_captions_belong_to_their_drawings() -> None:
    batches = batches_of(("neon sign", "red"), ("bold ink", "red"), ("neon sign", "red"), batch_size=64, sheets=0)
    latents, _, timesteps, tokens = batches.next(0)
    assert timesteps.sort().values.equal(timesteps)
    assert timesteps.diff().float().mean().item() == pytest.approx(1000 / 64, rel=0.02)
    sign = batches.tokenizer.token_to_id_mapping["sign"]
    of_neon = latents[:, 0, 0, 0].abs() != 2
    says_sign = (tokens == sign).any(dim=1)
    assert not (says_sign & ~of_neon).any()
    assert (says_sign & of_neon).sum() > 10


def test_an_unknown_word_is_put_in_anywhere() -> None:
    tokenizer = MiniTokenizer(WORDS)
    plain = tokenizer(["a fox, neon sign"] * 200)
    rows = Tokens(tokenizer, unknown=0.5, seed=0)(["a fox, neon sign"] * 200)
    changed = [row for row, before in zip(rows, plain, strict=True) if not torch.equal(row, before)]
    assert 70 < len(changed) < 130
    for row in changed:
        kept = row[row != tokenizer.unknown_token_id]
        assert torch.equal(kept, plain[0][: len(kept)])
        assert len(kept) == len(row) - 1
    assert {int((row == tokenizer.unknown_token_id).int().argmax()) for row in changed} == {1, 2, 3, 4, 5}


@torch.no_grad()
def test_tokens_are_embedded_as_texts_are(networks: Networks) -> None:
    tokens = networks.text_encoder.tokenizer(TEXTS)
    for ours, refiners in zip(embed_tokens(networks.text_encoder, tokens), networks.text_encoder(TEXTS), strict=True):
        torch.testing.assert_close(ours, refiners)
    assert networks.text_encoder.ensure_find(TextEncoderWithPooling)


@pytest.mark.parametrize("width", [16, 32])  # of a drawing, and of a sheet of two
def test_recorded_loss_is_that_of_the_model(networks: Networks, width: int) -> None:
    latents, noise, timesteps, tokens = batch(networks, width)
    parameters = dict(networks.named_parameters())
    detached = {name: parameter.detach() for name, parameter in parameters.items()}
    objective = make_objective(networks, NoiseLevels.of_sdxl("cpu"))
    loss = record(objective, detached, latents, noise, timesteps, tokens)(parameters, latents, noise, timesteps, tokens)
    # SDXL's schedule, written out: the square roots of the rates are evenly spaced
    rates = torch.linspace(8.5e-4**0.5, 1.2e-2**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - rates).cumprod(0)
    losses: list[float] = []
    for i, t in enumerate(timesteps.tolist()):
        ratio = 0.25 * float(kept[t] / (1 - kept[t]))
        networks.unet.set_timestep(torch.tensor([t]))
        networks.unet.set_time_ids(torch.tensor([[128, 8 * width, 0, 0, 128, 8 * width]]))
        embedding, pooled = networks.text_encoder(TEXTS[i])
        networks.unet.set_clip_text_embedding(embedding)
        networks.unet.set_pooled_text_embedding(pooled)
        with torch.no_grad():
            noisy = kept[t].sqrt() * latents[i : i + 1] + (1 - kept[t]).sqrt() * noise[i : i + 1]
            error = (networks.unet(noisy.float()) - noise[i]).square().mean()
        emphasis = 10.0 if ratio < 0.01 else max(ratio**-0.5, 1.0)  # of high noise
        losses.append(min(ratio, 5) / ratio * emphasis * float(error))
    # the training computes in bfloat16
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=0.01)
    loss.backward()
    # L's last layer is not used, as in SDXL, but neither is it there
    assert [name for name, parameter in parameters.items() if parameter.grad is None] == []
    networks.zero_grad()


def test_a_training_starts_from_the_packages_weights() -> None:
    torch.manual_seed(0)
    networks = Networks(vocabulary(), "cpu")
    networks.load(WEIGHTS)
    model = load_mini()
    for ours, packaged in ((networks.unet, model.unet), (networks.text_encoder, model.clip_text_encoder)):
        state = packaged.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    with pytest.raises(ValueError, match="to be of the vocabulary of the captions, got another one"):
        Networks(WORDS, "cpu").load(WEIGHTS)


def test_the_held_out_loss_is_of_held_out_drawings(tmp_path: Path) -> None:
    splits = ["train", "held_out_cell", "held_out_foundry", "held_out_cell"]
    records = [{"concept": "fox", "style": "neon sign", "split": split} for split in splits]
    pictures = np.random.default_rng(0).integers(0, 256, size=(4, 64, 64, 3), dtype=np.uint8)
    drawings = Drawings(pictures, records, ["fox"], ["neon sign"])
    path = tmp_path / "latents.safetensors"
    encode_drawings(MiniAutoencoder(), drawings, path)
    torch.manual_seed(0)
    networks = Networks(vocabulary(), "cpu")
    networks.initialize()  # it predicts nothing at first
    levels = NoiseLevels.of_sdxl("cpu")
    held_out = HeldOutLoss(networks, drawings, path, levels, count=2)
    straight = load_file(path)["straight"].float()
    assert all(any(torch.equal(latents, straight[i]) for i in (1, 2, 3)) for latents in held_out.latents)
    assert held_out.timesteps.sort().values.tolist() == [250, 750]
    loss, parts = held_out.measure(dict(networks.named_parameters()))
    squares = held_out.noise.square().mean(dim=(1, 2, 3))
    assert loss == pytest.approx(float((levels.weight[held_out.timesteps] * squares).mean()), rel=1e-4)
    assert [part == part for part in parts] == [False, True, False, True, False]  # two drawings, five parts
    assert sorted(part for part in parts if part == part) == pytest.approx(sorted(squares.tolist()), rel=1e-4)
    assert held_out.measure(dict(networks.named_parameters()))[0] == loss


def test_workers_agree_with_one() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    parameters, x, y = list(layer.parameters()), torch.randn(8, 3), torch.randn(8, 2)

    def loss(scale: float, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return scale * (layer(x) - y).square().mean()

    gradients: list[list[torch.Tensor]] = []
    for count in (1, 2, 4):
        value = Workers(count).backward(loss, parameters, x, y, passed=(3.0,))
        assert value.item() == pytest.approx(loss(3.0, x, y).item(), rel=1e-5)
        gradients.append([parameter.grad.clone() for parameter in parameters if parameter.grad is not None])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])


def test_average_warms_up() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    average = Average({"p": parameter}, decay=0.5)
    expected = 0.0
    for n in range(1, 30):
        with torch.no_grad():
            parameter.fill_(float(n))
        average.update({"p": parameter})
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
        assert average.tensors["p"].item() == pytest.approx(expected)


def test_resumed_training_is_the_same(tmp_path: Path) -> None:
    def start() -> tuple[dict[str, torch.nn.Parameter], Average, torch.optim.AdamW, torch.Generator]:
        torch.manual_seed(0)
        parameters = dict(torch.nn.Linear(4, 4).named_parameters())
        optimizer = torch.optim.AdamW(list(parameters.values()), lr=0.1, fused=True)
        return parameters, Average(parameters, 0.9), optimizer, torch.Generator().manual_seed(0)

    def advance(parameters: dict[str, Any], average: Average, optimizer: Any, generator: torch.Generator) -> None:
        x = torch.randn(4, generator=generator)
        optimizer.zero_grad()
        (parameters["weight"] @ x + parameters["bias"]).square().sum().backward()
        optimizer.step()
        average.update(parameters)

    one = start()
    for _ in range(3):
        advance(*one)
    save_checkpoint(tmp_path / "checkpoint.safetensors", *one, {"step": 3})
    advance(*one)

    other = start()
    assert load_checkpoint(tmp_path / "checkpoint.safetensors", *other)["step"] == 3
    advance(*other)
    for name in one[0]:
        assert torch.equal(one[0][name], other[0][name])
        assert torch.equal(one[1].tensors[name], other[1].tensors[name])


def test_batches_that_sheets_do_not_fill_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(["--output", "run", "--batch-size", "7"])
    assert "argument --batch-size: expected an even number of at least 2, got 7" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--steps", "--autoencoder-steps", "--threads"])
def test_training_of_no_steps_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(["--output", "run", option, "0"])
    assert f"argument {option}: expected at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(("threads", "count"), [(1, 1), (2, 2), (3, 2), (7, 4), (12, 8), (64, 16)])
def test_workers_share_a_batch_evenly(threads: int, count: int) -> None:
    assert count_workers(threads, batch_size=32) == count


def test_drawings_are_prepared_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # without npm there is nothing to prepare them from
    with pytest.raises(FileNotFoundError, match=f"no drawings in {tmp_path / 'data'}: expected --stage data or all"):
        main(["--output", str(tmp_path), "--stage", "unet"])
    with pytest.raises(SourceError, match="npm was not found"):
        main(["--output", str(tmp_path), "--stage", "data"])
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "index.json").write_text('{"records": [], "concepts": [], "styles": []}')
    np.save(tmp_path / "data" / "images.npy", np.zeros((0, 256, 256, 3), np.uint8))
    main(["--output", str(tmp_path), "--stage", "data"])
