"""The loss on held-out drawings, by timestep."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scripts.mini_data.captions import caption
from scripts.mini_training.dataset import Drawings
from scripts.mini_training.latents import load_latents
from scripts.mini_training.objective import Networks, NoiseLevels, predict
from scripts.mini_training.tracing import Parameters

PARTS = 5
"""The schedule is looked at in so many equal parts."""


class HeldOutLoss:
    """The error of the predicted noise on drawings that are not trained on: always the same ones, and the same noise.

    Args:
        networks: U-Net and text encoders to compute with. Their weights are overwritten.
        drawings: The pictures' records.
        path: The latents' file.
        levels: How much each timestep counts.
        count: How many drawings to look at, each at a timestep of its own.
        seed: Chooses drawings, timesteps, noise and captions.
    """

    def __init__(
        self, networks: Networks, drawings: Drawings, path: Path, levels: NoiseLevels, count: int = 512, seed: int = 7
    ) -> None:
        self.networks = networks
        self.levels = levels
        generator = torch.Generator().manual_seed(seed)
        held_out = drawings.held_out()
        rng = np.random.default_rng(seed)
        chosen = [held_out[int(i)] for i in rng.permutation(len(held_out))[:count]]
        self.latents = load_latents(path, drawings, chosen)[0].float()
        self.noise = torch.randn(self.latents.shape, generator=generator)
        order = torch.randperm(len(chosen), generator=generator)
        self.timesteps = ((torch.arange(len(chosen)) + 0.5) * 1000 / len(chosen)).long()[order]
        self.tokens = networks.text_encoder.tokenizer([caption(drawings.records[i], rng) for i in chosen])

    @torch.no_grad()
    def measure(self, weights: Parameters, batch_size: int = 128) -> tuple[float, list[float]]:
        """Measure some weights.

        Args:
            weights: The parameters by name.
            batch_size: How many drawings to look at at once.

        Returns:
            The mean loss as it is trained, and the plain mean squared error in each part of the schedule, from the
            least noise to the most.
        """
        self.networks.load_state_dict(weights, strict=False)
        device = self.levels.weight.device
        errors: list[Tensor] = []
        batch = (self.latents, self.noise, self.timesteps, self.tokens)
        for start in range(0, len(self.timesteps), batch_size):
            latents, noise, timesteps, tokens = (tensor[start : start + batch_size].to(device) for tensor in batch)
            prediction = predict(self.networks, self.levels, latents, noise, timesteps, tokens)
            errors.append((prediction - noise).square().mean(dim=(1, 2, 3)).cpu())
        error = torch.cat(errors)
        part = self.timesteps * PARTS // 1000
        loss = (self.levels.weight.cpu()[self.timesteps] * error).mean()
        return float(loss), [float(error[part == number].mean()) for number in range(PARTS)]
