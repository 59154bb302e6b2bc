"""What U-Net and text encoders are trained for, as one function of tensors."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import refiners.fluxion.layers as fl
import torch
from refiners.foundationals.latent_diffusion.solvers import DDIM
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.text_encoder import TextEncoderWithPooling
from refiners.foundationals.latent_diffusion.unet import ResidualBlock
from torch import Tensor, nn

from scripts.mini_training.checkpoints import load_tensors
from scripts.mini_training.precision import low_precision
from scripts.mini_training.tracing import Parameters, parameters_replaced, plain_attention
from style_aligned.models.mini.autoencoder import MiniAutoencoder
from style_aligned.models.mini.text_encoder import MiniDoubleTextEncoder
from style_aligned.models.mini.unet import MiniUNet, OutputBlock, SDXLCrossAttention

UNET = "unet.safetensors"
TEXT_ENCODER = "text_encoder.safetensors"

Objective = Callable[[Parameters, Tensor, Tensor, Tensor, Tensor], Tensor]


class Networks(nn.Module):
    """U-Net and text encoders, whose parameters are trained together."""

    def __init__(self, vocabulary: list[str], device: str) -> None:
        super().__init__()
        self.unet = MiniUNet(device=device)
        self.text_encoder = MiniDoubleTextEncoder(vocabulary, device=device)

    @torch.no_grad()
    def initialize(self) -> None:
        """Let every residual branch begin as zero, and positions say less than words."""
        last_layers: list[fl.Module] = [list(block.layer(0, fl.Chain))[-1] for block in self.unet.layers(ResidualBlock)]
        last_layers += [next(iter(block.layer(-1, fl.Chain))) for block in self.unet.layers(SDXLCrossAttention)]
        last_layers.append(list(self.unet.ensure_find(OutputBlock))[-1])
        for layer in last_layers:
            for parameter in layer.parameters():
                parameter.zero_()
        for name, parameter in self.text_encoder.named_parameters():
            if "PositionalEncoder" in name:
                parameter.mul_(0.2)

    def load(self, folder: Path) -> None:
        """Take the weights of a model that was trained before, as the package carries them.

        Args:
            folder: Where they are.

        Raises:
            ValueError: If they are of another vocabulary.
        """
        for module, file in ((self.unet, UNET), (self.text_encoder, TEXT_ENCODER)):
            tensors, metadata = load_tensors(folder / file)
            words = json.loads(metadata.get("vocabulary", "null"))
            if words is not None and words != list(self.text_encoder.tokenizer.vocabulary):
                raise ValueError(f"expected {folder / file} to be of the vocabulary of the captions, got another one")
            module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})


def embed_tokens(text_encoder: MiniDoubleTextEncoder, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The text encoders' result for tokens instead of texts, without Python numbers in between."""
    encoder_l = text_encoder.layer(("Parallel", 0), fl.Chain)
    encoder_g = text_encoder.ensure_find(TextEncoderWithPooling)
    x = tokens
    for layer in list(encoder_l)[2:]:  # after tokenizer and converter
        x = layer(x)
    embedding_l = x
    embedding_g = encoder_g.layer(2, fl.Chain)(tokens)
    last, projection = list(encoder_g.layer((3, 1), fl.Chain))[:2]
    projected = projection(last(embedding_g))
    end = (tokens == text_encoder.tokenizer.end_of_text_token_id).int().argmax(dim=1)
    pooled = projected.gather(1, end.view(-1, 1, 1).expand(-1, 1, projected.shape[-1])).squeeze(1)
    return torch.cat((embedding_l, embedding_g), dim=-1), pooled


@dataclass
class NoiseLevels:
    """SDXL's noise schedule, and how much each timestep counts.

    The weight is min(SNR, 5) / SNR, of
    [[arXiv:2303.09556] Efficient Diffusion Training via Min-SNR Weighting Strategy](https://arxiv.org/abs/2303.09556),
    and below an SNR of 1 up to ten times more, as 1 / sqrt(SNR): there it is decided what a picture shows, and the
    error of the predicted noise hardly tells.

    Attributes:
        signal: The factor of the latents at each timestep, of shape (1000,).
        noise: The factor of the noise.
        weight: The weight of the timestep's loss.
    """

    signal: Tensor
    noise: Tensor
    weight: Tensor

    @classmethod
    def of_sdxl(cls, device: str, limit: float = 5.0) -> "NoiseLevels":
        solver = DDIM(num_inference_steps=30, device=device)
        signal, noise = solver.cumulative_scale_factors, solver.noise_std
        ratio = (signal / noise * MiniAutoencoder.encoder_scale) ** 2  # the latents' variance is that scale's square
        return cls(signal, noise, (ratio.clamp(max=limit) / ratio) * ratio.clamp(min=0.01, max=1).rsqrt())


def predict(
    networks: Networks, levels: NoiseLevels, latents: Tensor, noise: Tensor, timesteps: Tensor, tokens: Tensor
) -> Tensor:
    """Predict the noise in noisy latents, computed in bfloat16.

    Args:
        networks: U-Net and text encoders.
        levels: The noise schedule.
        latents: Of shape (batch, 4, height, width).
        noise: Of the same shape.
        timesteps: Of shape (batch,).
        tokens: Of shape (batch, sequence_length).

    Returns:
        The predicted noise, of the latents' shape, in float32.
    """
    signal, deviation = levels.signal[timesteps].view(-1, 1, 1, 1), levels.noise[timesteps].view(-1, 1, 1, 1)
    height, width = (8 * side for side in latents.shape[-2:])  # in pixels
    # filled in where they are needed: a graph of a GPU can copy nothing from a list
    time_ids = torch.stack([torch.full_like(timesteps, side) for side in (height, width, 0, 0, height, width)], dim=1)
    with low_precision(latents.device):
        embedding, pooled = embed_tokens(networks.text_encoder, tokens)
        networks.unet.set_timestep(timesteps)
        networks.unet.set_time_ids(time_ids)
        networks.unet.set_clip_text_embedding(embedding)
        networks.unet.set_pooled_text_embedding(pooled)
        return networks.unet(signal * latents + deviation * noise).float()


def make_objective(networks: Networks, levels: NoiseLevels) -> Objective:
    """The training loss, as a function of parameters, latents, noise, timesteps and tokens.

    Returns:
        A function of the parameters by name, latents and noise of shape (batch, 4, height, width), timesteps of shape
        (batch,), and tokens of shape (batch, sequence_length); it returns the weighted mean squared error.
    """

    def objective(parameters: Parameters, latents: Tensor, noise: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        attention = plain_attention(networks) if latents.device.type == "cpu" else nullcontext()
        with parameters_replaced(networks, parameters), attention:
            prediction = predict(networks, levels, latents, noise, timesteps, tokens)
        errors = (prediction - noise).square().mean(dim=(1, 2, 3))
        return (levels.weight[timesteps] * errors).mean()

    return objective
