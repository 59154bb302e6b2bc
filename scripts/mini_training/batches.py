"""What U-Net and text encoders are shown: batches of latents, noise, timesteps and captions, made on the device.

Captions are written and turned into tokens before the training, some for every drawing, and then chosen from: a GPU
takes thousands of them in a second.
"""

import json
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scripts.mini_data.captions import caption, caption_of_sheet
from scripts.mini_training.dataset import Drawings, Record
from style_aligned.models.mini.text_encoder import MiniTokenizer

CAPTIONS = 8
"""Captions of each drawing, and other drawings that it shares a sheet with."""


@dataclass
class BatchSettings:
    """What a batch is.

    Attributes:
        batch_size: Drawings in it.
        unknown: How many captions get the unknown token somewhere, so that it comes to mean nothing.
        sheets: How many batches are of sheets: two drawings by one hand side by side, as collections are drawn. On
            them the self-attentions learn to look at another drawing for what a prompt does not say.
    """

    batch_size: int = 32
    unknown: float = 0.05
    sheets: float = 0.4


def kin(records: list[Record]) -> list[list[int]]:
    """For each drawing, those by the same hand: of its style and foundry, and of the same hidden factors."""
    hands = [json.dumps([record[key] for key in ("style", "foundry", "factors")]) for record in records]
    works: dict[str, list[int]] = {}
    for i, hand in enumerate(hands):
        works.setdefault(hand, []).append(i)
    return [works[hand] for hand in hands]


class Tokens:
    """Captions as tokens, some with a word put in that says nothing.

    Args:
        tokenizer: Turns captions into tokens.
        unknown: How many get the unknown token somewhere.
        seed: Says which, and where.
    """

    def __init__(self, tokenizer: MiniTokenizer, unknown: float, seed: int) -> None:
        self.tokenizer = tokenizer
        self.unknown = unknown
        self.random = random.Random(seed)

    def __call__(self, captions: list[str]) -> Tensor:
        """Tokens of shape (len(captions), sequence_length)."""
        rows = self.tokenizer(captions)
        lengths: list[int] = (rows != self.tokenizer.pad_token_id).sum(dim=1).tolist()
        for row, length in zip(rows, lengths, strict=True):
            if length < len(row) and self.random.random() < self.unknown:
                place = self.random.randrange(1, length)
                row[place + 1 :] = row[place:-1].clone()
                row[place] = self.tokenizer.unknown_token_id
        return rows


class Batches:
    """An endless source of training batches, whose state is that of its generator.

    Args:
        drawings: The records, for captions.
        latents: Latents of shape (2, count, 4, 32, 32): as they are, and mirrored. Batches are made on their device.
        indices: Which of the drawings the latents belong to.
        tokenizer: Turns captions into tokens.
        generator: Chooses drawings, captions, noise and timesteps, on the latents' device.
        settings: What a batch is.
        seed: Of the captions.

    Raises:
        ValueError: If sheets are asked for, and there are no two drawings by one hand.
    """

    def __init__(
        self,
        drawings: Drawings,
        latents: Tensor,
        indices: list[int],
        tokenizer: MiniTokenizer,
        generator: torch.Generator,
        settings: BatchSettings,
        seed: int,
    ) -> None:
        self.latents = latents
        self.tokenizer = tokenizer
        self.generator = generator
        self.settings = settings
        records = [drawings.records[i] for i in indices]
        rng = np.random.default_rng(seed)
        tokens = Tokens(tokenizer, settings.unknown, seed)
        self.captions = self._table([tokens([caption(record, rng) for _ in range(CAPTIONS)]) for record in records])

        works = kin(records)
        self.left = torch.tensor([i for i, others in enumerate(works) if len(others) > 1], device=latents.device)
        if settings.sheets > 0 and len(self.left) == 0:
            raise ValueError("expected two drawings of the same style, foundry and factors, for sheets, got none")
        right: list[list[int]] = []
        captions_of_sheets: list[Tensor] = []
        lefts = [int(i) for i in self.left]
        for i in lefts:
            others = [other for other in works[i] if other != i]
            right.append([others[int(rng.integers(len(others)))] for _ in range(CAPTIONS)])
            pairs = [(records[i], records[other]) for other in right[-1]]
            captions_of_sheets.append(tokens([caption_of_sheet(pair, rng) for pair in pairs]))
        self.right = torch.tensor(right, device=latents.device)
        self.captions_of_sheets = self._table(captions_of_sheets)

    def _table(self, rows: list[Tensor]) -> Tensor:
        """One tensor of tokens, small: there are less than 32768 words."""
        return torch.stack(rows).to(torch.int16).to(self.latents.device) if rows else torch.empty(0)

    def _choose(self, below: int, count: int) -> Tensor:
        return torch.randint(below, (count,), generator=self.generator, device=self.latents.device)

    def drawings(self) -> tuple[Tensor, Tensor]:
        """Latents of shape (batch_size, 4, 32, 32), and tokens."""
        size = self.settings.batch_size
        which, said, mirrored = (self._choose(n, size) for n in (self.latents.shape[1], CAPTIONS, 2))
        return self.latents[mirrored, which], self.captions[which, said]

    def sheets(self) -> tuple[Tensor, Tensor]:
        """Latents of shape (batch_size // 2, 4, 32, 64), as many drawings in all, and tokens."""
        size = self.settings.batch_size // 2
        which, said, mirrored = (self._choose(n, size) for n in (len(self.left), CAPTIONS, 2))
        left, right = self.left[which], self.right[which, said]
        latents = torch.cat((self.latents[mirrored, left], self.latents[mirrored, right]), dim=-1)
        return latents, self.captions_of_sheets[which, said]

    def next(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents, noise, timesteps and tokens of the batch of a step, counted from 0."""
        is_of_sheets = int((step + 1) * self.settings.sheets) > int(step * self.settings.sheets)
        latents, tokens = self.sheets() if is_of_sheets else self.drawings()
        latents, device = latents.float(), latents.device
        noise = torch.randn(latents.shape, generator=self.generator, device=device)
        # one timestep from each of as many equal parts of the schedule: less noisy gradients than independent ones
        within = torch.rand(len(latents), generator=self.generator, device=device)
        timesteps = (torch.arange(len(latents), device=device) + within) * (1000 / len(latents))
        return latents, noise, timesteps.long().clamp(max=999), tokens.long()
