"""Sample sheets of the model in training."""

from pathlib import Path

import torch
from refiners.foundationals.latent_diffusion.solvers import DDIM
from torch import Tensor

from scripts.mini_training.checkpoints import Average
from scripts.mini_training.dataset import Drawings, to_pictures
from scripts.mini_training.objective import Networks
from scripts.mini_training.precision import low_precision
from scripts.mini_training.sheets import save_sheet
from style_aligned.models.mini.autoencoder import MiniAutoencoder
from style_aligned.models.mini.model import SIZE, Mini


class Sampler:
    """Draws the same prompts from the same noise again and again, with the averaged weights.

    Args:
        drawings: Names concepts and styles.
        vocabulary: The text encoders' words.
        autoencoder: Decodes the latents.
        folder: Where the sheets go.
        concepts: How many concepts to draw, in every style.
        steps: Steps of the solver.
        guidance: Scale of the classifier-free guidance.
    """

    def __init__(
        self,
        drawings: Drawings,
        vocabulary: list[str],
        autoencoder: MiniAutoencoder,
        folder: Path,
        concepts: int = 6,
        steps: int = 25,
        guidance: float = 4.0,
    ) -> None:
        device = autoencoder.device or torch.device("cpu")
        self.networks = Networks(vocabulary, str(device))
        self.folder = folder
        self.guidance = guidance
        self.model = Mini(
            unet=self.networks.unet,
            lda=autoencoder,
            clip_text_encoder=self.networks.text_encoder,
            solver=DDIM(num_inference_steps=steps),
            device=device,
        )
        self.concepts = drawings.concepts[:: max(1, len(drawings.concepts) // concepts)][:concepts]
        self.styles = drawings.styles

    @torch.no_grad()
    def sample(self, prompts: list[str], seed: int = 0) -> Tensor:
        """Pictures of some prompts, of shape (len(prompts), 3, 256, 256), with values in about [-1, 1]."""
        model = self.model
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(len(prompts), 4, SIZE // 8, SIZE // 8, generator=generator).to(model.device)
        embedding, pooled = model.compute_clip_text_embedding(text=prompts, negative_text=[""] * len(prompts))
        time_ids = model.default_time_ids[:1].repeat(2 * len(prompts), 1)
        with low_precision(model.device):
            for step in model.steps:
                x = model(
                    x,
                    step=step,
                    clip_text_embedding=embedding,
                    pooled_text_embedding=pooled,
                    time_ids=time_ids,
                    condition_scale=self.guidance,
                ).float()
            return torch.cat([model.lda.decode(x[i : i + 8]) for i in range(0, len(x), 8)]).float()

    def draw(self, average: Average, step: int) -> None:
        """Write a sheet of concepts by styles."""
        self.networks.load_state_dict(average.tensors, strict=False)
        prompts = [f"a {concept}, {style}" for concept in self.concepts for style in self.styles]
        pictures = to_pictures(self.sample(prompts))
        save_sheet(self.folder / f"unet-{step:06d}.png", pictures, self.concepts, self.styles)
