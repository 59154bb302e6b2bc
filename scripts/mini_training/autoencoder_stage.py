"""Training of the autoencoder, on crops."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.mini_training.checkpoints import Average, load_checkpoint, save_checkpoint
from scripts.mini_training.dataset import Drawings, log, to_pictures, to_tensor
from scripts.mini_training.parallel import Workers
from scripts.mini_training.precision import low_precision
from scripts.mini_training.sheets import save_sheet
from style_aligned.models.mini.autoencoder import LATENT_CHANNELS, MiniAutoencoder


@dataclass
class AutoencoderSettings:
    """How the autoencoder is trained.

    Attributes:
        steps: How many, over which the learning rate falls to nothing.
        batch_size: Crops per step.
        crop: Side of the crops, in pixels.
        whole_every: One step in so many is done on whole pictures instead of crops.
        learning_rate: At its highest.
        noise: Deviation of the noise on the latents (which have unit variance), so that small errors stay small.
        edge_weight: Weight of the difference of gradients, against that of values.
        decay: Decay of the moving average of weights.
        report_steps: Steps between reports of the quality, with a sheet.
        save_minutes: Time between checkpoints.
    """

    steps: int = 2500
    batch_size: int = 16
    crop: int = 128
    whole_every: int = 6
    learning_rate: float = 2e-3
    noise: float = 0.12
    edge_weight: float = 1.0
    decay: float = 0.998
    report_steps: int = 500
    save_minutes: float = 2.0


class LatentStatistics:
    """Mean and deviation of each latent channel: of the batch in training, a moving average afterwards."""

    def __init__(self, mean: Tensor | None = None, variance: Tensor | None = None) -> None:
        self.mean = torch.zeros(LATENT_CHANNELS) if mean is None else mean
        self.variance = torch.ones(LATENT_CHANNELS) if variance is None else variance
        self.lock = Lock()

    def normalize(self, latents: Tensor, momentum: float = 0.01) -> Tensor:
        mean, variance = latents.mean(dim=(0, 2, 3)), latents.var(dim=(0, 2, 3))
        with self.lock:
            self.mean = self.mean.to(mean.device).lerp(mean.detach(), momentum)
            self.variance = self.variance.to(mean.device).lerp(variance.detach(), momentum)
        # normalised by the moving average mixed with the batch: crops of one batch say little about the whole
        mean, variance = 0.5 * (mean + self.mean), 0.5 * (variance + self.variance)
        return (latents - mean.view(1, -1, 1, 1)) / (variance.view(1, -1, 1, 1) + 1e-4).sqrt()


def edge_loss(prediction: Tensor, target: Tensor, levels: int = 3) -> Tensor:
    """Mean absolute difference of the horizontal and vertical gradients, over several scales."""
    difference = prediction - target
    loss = difference.new_zeros(())
    for level in range(levels):
        if level:
            difference = F.avg_pool2d(difference, 2)
        loss = loss + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return loss


def fold_statistics(autoencoder: MiniAutoencoder, mean: Tensor, deviation: Tensor) -> None:
    """Move the latents' centring and scaling into the encoder's last convolution (the decoder expects them so)."""
    last = [layer for layer in autoencoder.encoder.modules() if isinstance(layer, torch.nn.Conv2d)][-1]
    assert last.bias is not None
    with torch.no_grad():
        last.weight.div_(deviation.view(-1, 1, 1, 1))
        last.bias.copy_((last.bias - mean) / deviation)


def random_batch(
    drawings: Drawings, indices: list[int], settings: AutoencoderSettings, generator: torch.Generator, whole: bool
) -> Tensor:
    side = drawings.images.shape[1]
    crop = side if whole else settings.crop
    count = max(1, settings.batch_size * settings.crop**2 // crop**2)
    numbers: list[list[int]] = torch.randint(0, 2**31, (count, 4), generator=generator).numpy().tolist()
    crops: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    for which, top, left, flip in numbers:
        image = drawings.images[indices[which % len(indices)]]
        # multiples of 4, so that crops often lie as the whole pictures do on the latents' grid
        top, left = top % ((side - crop) // 4 + 1) * 4, left % ((side - crop) // 4 + 1) * 4
        piece = image[top : top + crop, left : left + crop]
        crops.append(piece[:, ::-1] if flip % 2 else piece)
    return to_tensor(np.stack(crops))


@torch.no_grad()
def peak_signal_to_noise(autoencoder: MiniAutoencoder, drawings: Drawings, indices: list[int]) -> float:
    """The mean PSNR of reconstructions, in dB."""
    values: list[float] = []
    for start in range(0, len(indices), 8):
        x = to_tensor(np.stack([drawings.images[i] for i in indices[start : start + 8]]), str(autoencoder.device))
        y = autoencoder.decode(autoencoder.encode(x)).clamp(-1, 1)
        errors = ((x - y) / 2).square().mean(dim=(1, 2, 3))
        values += [float(value) for value in -10 * errors.clamp(min=1e-8).log10()]
    return sum(values) / len(values)


def finished_copy(
    autoencoder: MiniAutoencoder, average: Average, drawings: Drawings, indices: list[int], device: str
) -> MiniAutoencoder:
    """The averaged weights as a model of its own, with the latents' exact statistics folded in."""
    result = MiniAutoencoder(device=device)
    result.load_state_dict({**autoencoder.state_dict(), **average.tensors})
    with torch.no_grad():
        chosen = indices[:: max(1, len(indices) // 512)]
        latents = torch.cat(
            [
                result.encoder(to_tensor(np.stack([drawings.images[i] for i in chosen[start : start + 16]]), device))
                for start in range(0, len(chosen), 16)
            ]
        )
    fold_statistics(result, mean=latents.mean(dim=(0, 2, 3)), deviation=latents.std(dim=(0, 2, 3)))
    return result


def train_autoencoder(
    drawings: Drawings, folder: Path, settings: AutoencoderSettings, device: str, workers: Workers, seed: int = 0
) -> MiniAutoencoder:
    """Train the autoencoder, or go on from its last checkpoint.

    Args:
        drawings: The pictures.
        folder: Where checkpoints, sheets and the log go.
        settings: How to train.
        device: Where to train, such as "cpu" or "cuda".
        workers: Compute the gradients.
        seed: The seed of the initial weights and of the order of pictures.

    Returns:
        The trained autoencoder.
    """
    checkpoint, log_file = folder / "autoencoder.ckpt.safetensors", folder / "autoencoder.log"
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    autoencoder = MiniAutoencoder(device=device)
    parameters = dict(autoencoder.named_parameters())
    trained = list(parameters.values())
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    average = Average(parameters, settings.decay)
    generator = torch.Generator().manual_seed(seed)
    statistics = LatentStatistics()
    step, seconds = 0, 0.0
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, parameters, average, optimizer, generator)
        step, seconds = state["step"], state["seconds"]
        statistics = LatentStatistics(torch.tensor(state["mean"]), torch.tensor(state["variance"]))
        log(f"autoencoder: resumed at step {step}, {seconds / 60:.1f} min", log_file)

    train, held_out = drawings.split(), drawings.held_out()
    held_out = held_out[:: max(1, len(held_out) // 48)][:48]

    def reconstruction_loss(x: Tensor, noise: Tensor) -> Tensor:
        with low_precision(device):
            latents = statistics.normalize(autoencoder.encoder(x).float())
            y = autoencoder.decoder(latents + settings.noise * noise).float()
        return F.l1_loss(y, x) + settings.edge_weight * edge_loss(y, x)

    def save() -> None:
        values = {"mean": list(map(float, statistics.mean)), "variance": list(map(float, statistics.variance))}
        save_checkpoint(
            checkpoint, parameters, average, optimizer, generator, {"step": step, "seconds": seconds, **values}
        )

    def report() -> MiniAutoencoder:
        model = finished_copy(autoencoder, average, drawings, train, device)
        log(f"autoencoder: step {step} PSNR {peak_signal_to_noise(model, drawings, held_out):.2f} dB", log_file)
        shown = held_out[:: max(1, len(held_out) // 12)][:12]
        with torch.no_grad():
            x = to_tensor(np.stack([drawings.images[i] for i in shown]), device)
            y = model.decode(model.encode(x))
        pictures = np.concatenate([to_pictures(x), to_pictures(y)])
        labels = [f"{drawings.records[i]['concept']}, {drawings.records[i]['style']}" for i in shown]
        save_sheet(folder / "sheets" / f"autoencoder-{step:06d}.png", pictures, ["drawing", "decoded"], labels, 258)
        return model

    losses: list[float] = []
    last_save = last_log = time.monotonic()
    while step < settings.steps:
        start = time.monotonic()
        progress = step / settings.steps
        rate = settings.learning_rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        whole = step % settings.whole_every == settings.whole_every - 1
        x = random_batch(drawings, train, settings, generator, whole=whole).to(device)
        noise = torch.randn(len(x), LATENT_CHANNELS, x.shape[2] // 8, x.shape[3] // 8, generator=generator).to(device)
        loss = workers.backward(reconstruction_loss, trained, x, noise)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        average.update(parameters)
        losses.append(loss.item())
        step += 1
        now = time.monotonic()
        seconds += now - start
        if now - last_log > 20:
            mean = sum(losses) / len(losses)
            place = f"step {step}/{settings.steps} {seconds / 60:.1f} min"
            log(f"autoencoder: {place} loss {mean:.4f} lr {rate:.1e}", log_file)
            losses, last_log = [], now
        if now - last_save > settings.save_minutes * 60:
            save()
            last_save = now
        if step % settings.report_steps == 0 and step < settings.steps:
            report()
    save()
    return report()
