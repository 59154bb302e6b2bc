"""What the golden file holds: latents and images of small random models, for all that can be set."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from refiners.foundationals.latent_diffusion import StableDiffusion_XL
from refiners.foundationals.latent_diffusion.solvers import DDIM, DPMSolver, Euler, LCMSolver, Solver
from torch import Generator, Tensor

from tests.golden import calls

FOLDER = Path(__file__).parent
FILE = FOLDER / "results.safetensors"

PROMPT = "a fox, neon sign"
PROMPTS = ["a rocket, neon sign", "a cat", "dog, ink"]
SIZES = {"mini": (64, 96), "sd1": (64, 128), "sdxl": (64, 64)}
STEPS = 2
GUIDANCE = 3.0
SOLVERS: dict[str, Solver] = {
    "DDIM": DDIM(num_inference_steps=30),
    "Euler": Euler(num_inference_steps=30),
    "DPM": DPMSolver(num_inference_steps=30),
    "DPM of a first-order last step": DPMSolver(num_inference_steps=30, last_step_first_order=True),
    "LCM": LCMSolver(num_inference_steps=30),
}
EVERYTHING: dict[str, Any] = {
    "adain_values": True, "share_group_norm": True, "scale": 0.8, "shift": 0.25, "only_self_level": 0.3,
}  # fmt: skip


@cache
def _build(name: str) -> Any:
    model = calls.build(name)
    for seed, part in enumerate((model.unet, model.lda, model.clip_text_encoder)):
        part.to_empty(device="cpu")
        generator = Generator().manual_seed(seed)
        for name, parameter in part.named_parameters():
            # uniform numbers are the same bits on every processor, normal ones are not
            numbers = (torch.rand(parameter.shape, generator=generator) - 0.5) * 12**0.5
            if parameter.ndim > 1:
                numbers *= parameter[0].numel() ** -0.5
            else:
                numbers = 0.25 * numbers + (1 if name.endswith("weight") else 0)  # of a normalization, or a bias
            parameter.requires_grad_(False).copy_(numbers)
    return type(model)(unet=model.unet, lda=model.lda, clip_text_encoder=model.clip_text_encoder)


def get_model(name: str, solver: str = "DDIM", guidance: bool = True) -> Any:
    """Return a model with random weights, the same ones each time."""
    model = _build(name)
    model.solver = SOLVERS[solver]
    model.classifier_free_guidance = guidance
    return model


def make_noise(name: str, *seeds: int) -> Tensor:
    height, width = SIZES[name]
    shape = (1, 4, height // 8, width // 8)
    return torch.cat([torch.randn(shape, generator=Generator().manual_seed(seed)) for seed in seeds])


def stack_pictures(pictures: list[Any]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(picture.convert("RGB"))) for picture in pictures])


@dataclass(frozen=True)
class StyleCase:
    """A style, and a set in it."""

    options: dict[str, Any] = field(default_factory=dict[str, Any])
    model: str = "mini"
    solver: str = "DDIM"
    guidance: bool = True
    negative_prompt: str = "ink"
    noise: bool = False
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    steps: int = STEPS

    def get_model(self) -> Any:
        return get_model(self.model, solver=self.solver, guidance=self.guidance)

    def make(self, make: Any = calls.make_style) -> Any:
        settings: dict[str, Any] = {
            "negative_prompt": self.negative_prompt,
            "seed": 5,
            "num_inference_steps": self.steps,
            "condition_scale": GUIDANCE,
            "size": SIZES[self.model],
            "options": self.options,
        }
        if self.noise:
            settings["noise"] = make_noise(self.model, 11)
        return make(self.get_model(), PROMPT, **settings)

    def generate(self, style: Any) -> tuple[Tensor, list[Any]]:
        arguments = dict(self.arguments)
        if self.noise:
            arguments["noise"] = make_noise(self.model, 12, 13, 14)
        return calls.run_generate(self.get_model(), style, PROMPTS, **arguments)

    def compute(self) -> dict[str, Tensor]:
        style = self.make()
        aligned, _ = self.generate(style)
        return {"style": calls.style_latents(style), "aligned": aligned}


STYLE_CASES = {
    "defaults": StyleCase(),
    "scale and shift": StyleCase({"scale": 0.6, "shift": 0.5}),
    "share_group_norm": StyleCase({"share_group_norm": True}),
    "adain_values": StyleCase({"adain_values": True}),
    "only_self_level": StyleCase({"only_self_level": 0.5}),
    "without share_attention": StyleCase({"share_attention": False}),
    "without adain": StyleCase({"adain_queries": False, "adain_keys": False}),
    "everything": StyleCase(EVERYTHING),
    "Euler": StyleCase(solver="Euler", steps=3),
    "DPM": StyleCase(solver="DPM", steps=3),
    "DPM of a first-order last step": StyleCase(solver="DPM of a first-order last step", steps=3),
    "LCM": StyleCase(solver="LCM", steps=3),
    "without guidance": StyleCase(guidance=False),
    "LCM without guidance": StyleCase(solver="LCM", guidance=False),
    "empty negative prompt": StyleCase(negative_prompt=""),
    "given noise": StyleCase(noise=True),
    "seeds in batches": StyleCase(arguments={"seeds": [2**40, 7, 0], "batch_size": 1, "chunk_size": 2}),
    "sd1": StyleCase(model="sd1"),
    "sd1 everything": StyleCase(EVERYTHING, model="sd1", solver="DPM"),
    "sd1 without guidance": StyleCase(model="sd1", guidance=False),
    "sdxl everything": StyleCase(EVERYTHING, model="sdxl", solver="Euler"),
}
UNALIGNED_CASES = ("defaults", "LCM", "without guidance", "sd1")
STYLE_FILES = {
    "mini": ("everything", FOLDER / "mini_style.safetensors"),
    "sd1": ("sd1", FOLDER / "sd1_style.safetensors"),
}


@dataclass(frozen=True)
class LoopCase:
    """Whole batches in the loop that Refiners' users write."""

    options: dict[str, Any] | None
    model: str = "mini"
    solver: str = "DDIM"
    guidance: bool = True

    def compute(self) -> dict[str, Tensor]:
        model = get_model(self.model, solver=self.solver, guidance=self.guidance)
        prompts = [PROMPT, *PROMPTS]
        latents = calls.run_loop(
            model,
            make_noise(self.model, *range(20, 20 + len(prompts))),
            model.solver.rebuild(num_inference_steps=STEPS),
            make_context(model, self.model, prompts),
            GUIDANCE,
            self.options,
        )
        return {"latents": latents}


def make_context(model: Any, name: str, prompts: list[str]) -> dict[str, Tensor]:
    """What the U-Net takes of prompts: all negative ones, then all positive ones."""
    with torch.no_grad():
        embeddings = model.compute_clip_text_embedding(prompts, ["ink"] * len(prompts))
    halves = 2 if model.classifier_free_guidance else 1
    if not isinstance(model, StableDiffusion_XL):
        return {"clip_text_embedding": embeddings[-halves * len(prompts) :]}
    text, pooled = (embedding[-halves * len(prompts) :] for embedding in embeddings)
    time_ids = torch.tensor([[*SIZES[name], 0, 0, *SIZES[name]]]).repeat(len(text), 1)
    return {"clip_text_embedding": text, "pooled_text_embedding": pooled, "time_ids": time_ids}


LOOP_CASES = {
    "loop without adapter": LoopCase(None),
    "loop": LoopCase({}),
    "loop everything": LoopCase({**EVERYTHING, "set_size": 4}, solver="Euler"),
    "loop full_attention_share": LoopCase({"full_attention_share": True}),
    "loop full_attention_share and share_group_norm": LoopCase(
        {"full_attention_share": True, "share_group_norm": True}
    ),
    "loop two sets": LoopCase({"set_size": 2}, solver="DPM"),
    "loop two sets without guidance": LoopCase({"set_size": 2, "adain_values": True}, guidance=False),
    "loop two sets full_attention_share": LoopCase({"set_size": 2, "full_attention_share": True}),
    "loop sd1": LoopCase({"shift": 0.7}, model="sd1"),
    "loop sd1 full_attention_share": LoopCase({"full_attention_share": True}, model="sd1"),
    "loop sdxl without guidance": LoopCase({"set_size": 4}, model="sdxl", guidance=False),
}


def compute_replay() -> Tensor:
    """References in one pass of the U-Net and their targets in another one."""
    model = get_model("mini")
    contexts = [make_context(model, "mini", prompts) for prompts in ([PROMPT], PROMPTS)]
    for context in contexts:
        context["timestep"] = torch.tensor([401])
    references, targets = make_noise("mini", 30), make_noise("mini", 31, 32, 33)
    return calls.run_replay(model, references.repeat(2, 1, 1, 1), targets.repeat(2, 1, 1, 1), contexts)


def compute_pictures() -> Tensor:
    """The image of the reference and those of its targets."""
    case = STYLE_CASES["defaults"]
    style = case.make()
    image, preview = calls.style_pictures(case.get_model(), style)
    return stack_pictures([image, preview, *case.generate(style)[1]])


def compute_unaligned(name: str) -> Tensor:
    case = STYLE_CASES[name]
    return calls.run_generate_unaligned(case.get_model(), case.make(), PROMPTS)
