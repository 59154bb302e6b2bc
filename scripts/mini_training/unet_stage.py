"""Training of U-Net and text encoders, on the encoded drawings."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scripts.mini_data.captions import vocabulary
from scripts.mini_training.batches import Batches, BatchSettings
from scripts.mini_training.checkpoints import Average, load_checkpoint, save_checkpoint
from scripts.mini_training.dataset import Drawings, log
from scripts.mini_training.export import load_autoencoder
from scripts.mini_training.held_out import HeldOutLoss
from scripts.mini_training.latents import load_latents
from scripts.mini_training.objective import Networks, NoiseLevels, Objective, make_objective
from scripts.mini_training.parallel import Workers
from scripts.mini_training.replay import Replay
from scripts.mini_training.samples import Sampler


@dataclass
class UNetSettings(BatchSettings):
    """How U-Net and text encoders are trained.

    Attributes:
        steps: How many, over which the learning rate falls to nothing.
        minutes: How long, instead of `steps`: on a machine that is lent.
        learning_rate: At its highest.
        warmup: Steps until the learning rate is at its highest.
        weight_decay: As in AdamW.
        decay: Decay of the moving average of weights.
        save_minutes: Time between checkpoints.
        reports: How often the loss on held-out drawings is measured.
        sheets_drawn: How often a sheet of samples is drawn.
    """

    steps: int = 12000
    minutes: float | None = None
    learning_rate: float = 1.2e-3
    warmup: int = 200
    weight_decay: float = 0.01
    decay: float = 0.9985
    save_minutes: float = 5.0
    reports: int = 48
    sheets_drawn: int = 12


def train_unet(
    drawings: Drawings,
    folder: Path,
    settings: UNetSettings,
    device: str,
    workers: Workers | Replay,
    seed: int = 0,
    initial: Path | None = None,
) -> None:
    """Train U-Net and text encoders, or go on from their last checkpoint.

    Args:
        drawings: The pictures' records.
        folder: Where the latents and the autoencoder are, and where checkpoints, sheets and the log go.
        settings: How to train.
        device: Where to train, such as "cpu" or "cuda".
        workers: Compute the gradients. The number of threads divides half of the batch size, the sheets in a batch.
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
    generator = torch.Generator(device).manual_seed(seed)
    indices = drawings.split()
    latents = load_latents(folder / "latents.safetensors", drawings, indices).to(device)
    tokenizer = networks.text_encoder.tokenizer
    batches = Batches(drawings, latents, indices, tokenizer, generator, settings, seed)
    step, seconds_before = 0, 0.0
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, parameters, average, optimizer, generator)
        if state["vocabulary"] != words:
            raise ValueError(f"{checkpoint} was trained with another vocabulary")
        step, seconds_before = state["step"], state["seconds"]
        if settings.minutes is None and step > settings.steps:
            raise ValueError(
                f"expected --steps of at least {step}, as {checkpoint} has been trained, got {settings.steps}"
            )
        log(f"unet: resumed at step {step}, {seconds_before / 60:.1f} min", log_file)

    def seconds() -> float:
        return seconds_before + time.monotonic() - began

    def save() -> None:
        state = {"step": step, "seconds": seconds(), "vocabulary": words}
        save_checkpoint(checkpoint, parameters, average, optimizer, generator, state)

    levels = NoiseLevels.of_sdxl(device)
    held_out = HeldOutLoss(Networks(words, device), drawings, folder / "latents.safetensors", levels)
    sampler = Sampler(drawings, words, load_autoencoder(folder / "export", device), folder / "sheets")
    objective = make_objective(networks, levels)
    count = sum(parameter.numel() for parameter in parameters.values())
    log(f"unet: {count / 1e6:.2f} M parameters, {len(indices)} drawings, {settings}", log_file)
    detached = {name: parameter.detach() for name, parameter in parameters.items()}
    recorded: dict[torch.Size, Objective] = {}  # one for drawings, one for sheets

    def progress() -> float:
        return step / settings.steps if settings.minutes is None else min(1.0, seconds() / 60 / settings.minutes)

    losses: list[Tensor] = []
    last_log, next_save = time.monotonic(), seconds() + settings.save_minutes * 60
    reported, drawn = int(progress() * settings.reports), int(progress() * settings.sheets_drawn)
    while (done := progress()) < 1:
        # flat at first, then down along a cosine: there are few steps, and most is learned at the high rate
        height = 1.0 if done < 0.3 else 0.5 + 0.5 * math.cos(math.pi * (done - 0.3) / 0.7)
        rate = settings.learning_rate * min(1.0, (step + 1) / settings.warmup) * max(height, 0.005)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = batches.next(step)
        shape = batch[0].shape
        if shape not in recorded:
            recorded[shape] = workers.prepare(objective, detached, *batch)
        loss = workers.backward(recorded[shape], trained, *batch, passed=(parameters,))
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        average.update(parameters)
        losses.append(loss)
        step += 1
        if step in (1, 10) or step % 50 == 0:
            now = time.monotonic()
            mean, pace = torch.stack(losses).mean().item(), (now - last_log) / len(losses)
            if not math.isfinite(mean):
                raise FloatingPointError(f"the loss is {mean} at step {step}; the last checkpoint is {checkpoint}")
            log(
                f"unet: step {step}, {progress():.1%}, {seconds() / 60:.1f} min, loss {mean:.4f}, lr {rate:.1e}, "
                f"{pace:.3f} s/step",
                log_file,
            )
            losses, last_log = [], now
        if step == 1 or int(progress() * settings.reports) > reported:
            reported = int(progress() * settings.reports)
            loss, parts = held_out.measure(average.tensors)
            log(
                f"unet: step {step} held out: loss {loss:.4f}, errors from least noise to most "
                f"{' '.join(f'{part:.4f}' for part in parts)}",
                log_file,
            )
        if seconds() > next_save:
            save()
            next_save = seconds() + settings.save_minutes * 60
        if drawn < int(progress() * settings.sheets_drawn) < settings.sheets_drawn:
            drawn = int(progress() * settings.sheets_drawn)
            sampler.draw(average, step)
    save()
    sampler.draw(average, step)
    log(f"unet: finished at step {step}, {seconds() / 60:.1f} min", log_file)
