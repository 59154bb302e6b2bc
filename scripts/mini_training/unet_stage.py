"""Training of U-Net and text encoders, on the encoded drawings."""

import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.mini_data.captions import caption, caption_of_sheet, vocabulary
from scripts.mini_training.checkpoints import Average, load_checkpoint, save_checkpoint
from scripts.mini_training.dataset import Drawings, Record, log
from scripts.mini_training.export import load_autoencoder
from scripts.mini_training.held_out import HeldOutLoss
from scripts.mini_training.latents import load_latents
from scripts.mini_training.objective import Networks, NoiseLevels, Objective, make_objective
from scripts.mini_training.parallel import Workers
from scripts.mini_training.samples import Sampler
from scripts.mini_training.tracing import record
from style_aligned.models.mini.text_encoder import MiniTokenizer


@dataclass
class UNetSettings:
    """How U-Net and text encoders are trained.

    Attributes:
        steps: How many, over which the learning rate falls to nothing.
        batch_size: Latents per step.
        learning_rate: At its highest.
        warmup: Steps until the learning rate is at its highest.
        weight_decay: As in AdamW.
        decay: Decay of the moving average of weights.
        unknown: How many captions get the unknown token somewhere, so that it comes to mean nothing.
        sheets: How many batches are of sheets: two drawings by one hand side by side, as collections are drawn. On
            them the self-attentions learn to look at another drawing for what a prompt does not say.
        save_minutes: Time between checkpoints.
        report_steps: Steps between measurements of the loss on held-out drawings.
        sheet_steps: Steps between sample sheets.
    """

    steps: int = 12000
    batch_size: int = 32
    learning_rate: float = 1.2e-3
    warmup: int = 200
    weight_decay: float = 0.01
    decay: float = 0.9985
    unknown: float = 0.05
    sheets: float = 0.4
    save_minutes: float = 5.0
    report_steps: int = 250
    sheet_steps: int = 1000


def kin(records: list[Record]) -> list[list[int]]:
    """For each drawing, those by the same hand: of its style and foundry, and of the same hidden factors."""
    hands = [json.dumps([record[key] for key in ("style", "foundry", "factors")]) for record in records]
    works: dict[str, list[int]] = {}
    for i, hand in enumerate(hands):
        works.setdefault(hand, []).append(i)
    return [works[hand] for hand in hands]


class Batches:
    """An endless source of training batches, whose state can be saved.

    Args:
        drawings: The records, for captions.
        latents: Latents of shape (2, count, 4, 32, 32): as they are, and mirrored.
        indices: Which of the drawings the latents belong to.
        tokenizer: Turns captions into tokens.
        generator: Chooses drawings, noise and timesteps.
        seed: Of the captions.
    """

    def __init__(
        self,
        drawings: Drawings,
        latents: Tensor,
        indices: list[int],
        tokenizer: MiniTokenizer,
        generator: torch.Generator,
        settings: UNetSettings,
        seed: int,
    ) -> None:
        self.records = [drawings.records[i] for i in indices]
        self.kin = kin(self.records)
        self.with_kin = torch.tensor([i for i, others in enumerate(self.kin) if len(others) > 1])
        if settings.sheets > 0 and len(self.with_kin) == 0:
            raise ValueError("expected two drawings of the same style, foundry and factors, for sheets, got none")
        self.latents = latents
        self.tokenizer = tokenizer
        self.generator = generator
        self.settings = settings
        self.caption_rng = np.random.default_rng(seed)
        self.unknown_rng = random.Random(seed)

    def tokens(self, captions: list[str]) -> Tensor:
        rows = self.tokenizer(captions)
        for row in rows:
            length = int((row != self.tokenizer.pad_token_id).sum())
            if length < len(row) and self.unknown_rng.random() < self.settings.unknown:
                place = self.unknown_rng.randrange(1, length)
                row[place + 1 :] = row[place:-1].clone()
                row[place] = self.tokenizer.unknown_token_id
        return rows

    def drawings(self) -> tuple[Tensor, Tensor]:
        """Latents of shape (batch_size, 4, 32, 32), and tokens."""
        size = self.settings.batch_size
        which = torch.randint(len(self.records), (size,), generator=self.generator)
        mirrored = torch.randint(2, (size,), generator=self.generator)
        captions = [caption(self.records[int(i)], self.caption_rng) for i in which]
        return self.latents[mirrored, which], self.tokens(captions)

    def next_of_kin(self, which: int, place: float) -> int:
        """Another drawing by the hand of this one, at a place among them from 0 up to 1."""
        others = [i for i in self.kin[which] if i != which]
        return others[int(place * len(others))]

    def sheets(self) -> tuple[Tensor, Tensor]:
        """Latents of shape (batch_size // 2, 4, 32, 64), as many drawings in all, and tokens."""
        size = self.settings.batch_size // 2
        left = self.with_kin[torch.randint(len(self.with_kin), (size,), generator=self.generator)]
        places = torch.rand(size, generator=self.generator)
        right = torch.tensor([self.next_of_kin(int(i), float(place)) for i, place in zip(left, places, strict=True)])
        mirrored = torch.randint(2, (size,), generator=self.generator)
        pairs = [(self.records[int(i)], self.records[int(j)]) for i, j in zip(left, right, strict=True)]
        captions = [caption_of_sheet(pair, self.caption_rng) for pair in pairs]
        latents = torch.cat((self.latents[mirrored, left], self.latents[mirrored, right]), dim=-1)
        return latents, self.tokens(captions)

    def next(self, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents, noise, timesteps and tokens of one batch."""
        is_of_sheets = float(torch.rand((), generator=self.generator)) < self.settings.sheets
        latents, tokens = self.sheets() if is_of_sheets else self.drawings()
        latents = latents.float()
        noise = torch.randn(latents.shape, generator=self.generator)
        # one timestep from each of as many equal parts of the schedule: less noisy gradients than independent ones
        spread = (torch.arange(len(latents)) + torch.rand(len(latents), generator=self.generator)) / len(latents)
        timesteps = (spread * 1000).long().clamp(max=999)
        return latents.to(device), noise.to(device), timesteps.to(device), tokens.to(device)

    def state(self) -> dict[str, Any]:
        return {"caption_rng": self.caption_rng.bit_generator.state, "unknown_rng": self.unknown_rng.getstate()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.caption_rng.bit_generator.state = state["caption_rng"]
        version, numbers, gauss = state["unknown_rng"]
        self.unknown_rng.setstate((version, tuple(numbers), gauss))


def train_unet(
    drawings: Drawings,
    folder: Path,
    settings: UNetSettings,
    device: str,
    workers: Workers,
    seed: int = 0,
    initial: Path | None = None,
) -> None:
    """Train U-Net and text encoders, or go on from their last checkpoint.

    Args:
        drawings: The pictures' records.
        folder: Where the latents and the autoencoder are, and where checkpoints, sheets and the log go.
        settings: How to train.
        device: Where to train, such as "cpu" or "cuda".
        workers: Compute the gradients; their number divides half of the batch size, the number of sheets in a batch.
        seed: The seed of the initial weights, the order of pictures, captions, noise and timesteps.
        initial: The folder of the weights to start from. None means from nothing.
    """
    began = time.monotonic()
    checkpoint, log_file = folder / "unet.ckpt.safetensors", folder / "unet.log"
    words = vocabulary()
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    networks = Networks(words, device)
    networks.initialize()
    if initial is not None:
        networks.load(initial)
    parameters = dict(networks.named_parameters())
    trained = list(parameters.values())
    optimizer = torch.optim.AdamW(
        trained,
        lr=settings.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    average = Average(parameters, settings.decay)
    generator = torch.Generator().manual_seed(seed)
    indices = drawings.split()
    latents = load_latents(folder / "latents.safetensors", drawings, indices)
    tokenizer = networks.text_encoder.tokenizer
    batches = Batches(drawings, latents, indices, tokenizer, generator, settings, seed)
    step, seconds_before = 0, 0.0
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, parameters, average, optimizer, generator)
        if state["vocabulary"] != words:
            raise ValueError(f"{checkpoint} was trained with another vocabulary")
        step, seconds_before = state["step"], state["seconds"]
        batches.load_state(state)
        if step > settings.steps:
            raise ValueError(
                f"expected --steps of at least {step}, as {checkpoint} has been trained, got {settings.steps}"
            )
        log(f"unet: resumed at step {step}, {seconds_before / 60:.1f} min", log_file)

    def seconds() -> float:
        return seconds_before + time.monotonic() - began

    def save() -> None:
        state = {"step": step, "seconds": seconds(), "vocabulary": words, **batches.state()}
        save_checkpoint(checkpoint, parameters, average, optimizer, generator, state)

    levels = NoiseLevels.of_sdxl(device)
    held_out = HeldOutLoss(Networks(words, device), drawings, folder / "latents.safetensors", levels)
    sampler = Sampler(drawings, words, load_autoencoder(folder / "export", device), folder / "sheets")
    objective = make_objective(networks, levels)
    count = sum(parameter.numel() for parameter in parameters.values())
    log(f"unet: {count / 1e6:.2f} M parameters, {len(indices)} drawings, {settings}", log_file)
    detached = {name: parameter.detach() for name, parameter in parameters.items()}
    recorded: dict[torch.Size, Objective] = {}  # one for drawings, one for sheets

    losses: list[Tensor] = []
    last_log, next_save = time.monotonic(), seconds() + settings.save_minutes * 60
    while step < settings.steps:
        progress = step / settings.steps
        # flat at first, then down along a cosine: there are few steps, and most is learned at the high rate
        shape = 1.0 if progress < 0.3 else 0.5 + 0.5 * math.cos(math.pi * (progress - 0.3) / 0.7)
        rate = settings.learning_rate * min(1.0, (step + 1) / settings.warmup) * max(shape, 0.005)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = batches.next(device)
        shape = batch[0].shape
        if shape not in recorded:
            parts = [tensor.chunk(workers.count)[0] for tensor in batch]
            recorded[shape] = objective if workers.count == 1 else record(objective, detached, *parts)
        loss = workers.backward(recorded[shape], trained, *batch, passed=(parameters,))
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        average.update(parameters)
        losses.append(loss)
        step += 1
        if step in (1, 10, settings.steps) or step % 50 == 0:
            now = time.monotonic()
            mean, pace = torch.stack(losses).mean().item(), (now - last_log) / len(losses)
            if not math.isfinite(mean):
                raise FloatingPointError(f"the loss is {mean} at step {step}; the last checkpoint is {checkpoint}")
            log(
                f"unet: step {step}/{settings.steps} {seconds() / 60:.1f} min loss {mean:.4f} lr {rate:.1e} "
                f"{pace:.2f} s/step",
                log_file,
            )
            losses, last_log = [], now
        if step == 1 or step % settings.report_steps == 0 or step == settings.steps:
            loss, parts = held_out.measure(average.tensors)
            log(
                f"unet: step {step} held out: loss {loss:.4f}, errors from least noise to most "
                f"{' '.join(f'{part:.4f}' for part in parts)}",
                log_file,
            )
        if seconds() > next_save:
            save()
            next_save = seconds() + settings.save_minutes * 60
        if step % settings.sheet_steps == 0 and step < settings.steps:
            sampler.draw(average, step)
    save()
    sampler.draw(average, step)
    log(f"unet: finished at step {step}, {seconds() / 60:.1f} min", log_file)
