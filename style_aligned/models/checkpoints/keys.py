"""The names of one and the same module in Refiners, in diffusers and in the original single-file checkpoints.

The names follow from the block structure, so they are spelled as rules over it: U-Net and autoencoder here, the text
encoders in `text_keys`. A `Names` says what a module is called in the three; names of a block and of a module within it
are joined by `/`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Layout = Literal["diffusers", "original", "refiners"]


@dataclass(frozen=True)
class Names:
    """What a module is called.

    Attributes:
        refiners: In Refiners' chains.
        diffusers: In a folder of diffusers.
        original: In the single file of the model's authors.
    """

    refiners: str
    diffusers: str
    original: str

    def __truediv__(self, inner: "Names") -> "Names":
        return Names(
            refiners=f"{self.refiners}.{inner.refiners}",
            diffusers=f"{self.diffusers}.{inner.diffusers}",
            original=f"{self.original}.{inner.original}",
        )

    def spellings(self, layout: Layout) -> list[str]:
        """Return what the module can be called in a layout, the usual name first.

        There are single files whose parts have diffusers' names.
        """
        usual: str = getattr(self, layout)
        if layout != "original":
            return [usual]
        part = UNET if self.refiners.startswith(f"{UNET.refiners}.") else AUTOENCODER
        return [usual, part.original + self.diffusers.removeprefix(part.diffusers)]


UNET = Names("unet", "unet", "model.diffusion_model")
AUTOENCODER = Names("lda", "vae", "first_stage_model")

UNET_RESIDUAL_BLOCK = (
    Names("Chain.GroupNorm_1", "norm1", "in_layers.0"),
    Names("Chain.RangeAdapter2d.Conv2d", "conv1", "in_layers.2"),
    Names("Chain.RangeAdapter2d.Chain.Linear", "time_emb_proj", "emb_layers.1"),
    Names("Chain.GroupNorm_2", "norm2", "out_layers.0"),
    Names("Chain.Conv2d", "conv2", "out_layers.3"),
    Names("Conv2d", "conv_shortcut", "skip_connection"),
)
AUTOENCODER_RESIDUAL_BLOCK = (
    Names("Chain.GroupNorm_1", "norm1", "norm1"),
    Names("Chain.Conv2d_1", "conv1", "conv1"),
    Names("Chain.GroupNorm_2", "norm2", "norm2"),
    Names("Chain.Conv2d_2", "conv2", "conv2"),
    Names("Conv2d", "conv_shortcut", "nin_shortcut"),
)
AUTOENCODER_ATTENTION = (
    Names("GroupNorm", "group_norm", "norm"),
    Names("SelfAttention2d.Distribute.Linear_1", "to_q", "q"),
    Names("SelfAttention2d.Distribute.Linear_2", "to_k", "k"),
    Names("SelfAttention2d.Distribute.Linear_3", "to_v", "v"),
    Names("SelfAttention2d.Linear", "to_out.0", "proj_out"),
)
TRANSFORMER_BLOCK = (  # diffusers kept the names of the original
    ("Residual_1.LayerNorm", "norm1"),
    ("Residual_1.SelfAttention.Distribute.Linear_1", "attn1.to_q"),
    ("Residual_1.SelfAttention.Distribute.Linear_2", "attn1.to_k"),
    ("Residual_1.SelfAttention.Distribute.Linear_3", "attn1.to_v"),
    ("Residual_1.SelfAttention.Linear", "attn1.to_out.0"),
    ("Residual_2.LayerNorm", "norm2"),
    ("Residual_2.Attention.Distribute.Linear_1", "attn2.to_q"),
    ("Residual_2.Attention.Distribute.Linear_2", "attn2.to_k"),
    ("Residual_2.Attention.Distribute.Linear_3", "attn2.to_v"),
    ("Residual_2.Attention.Linear", "attn2.to_out.0"),
    ("Residual_3.LayerNorm", "norm3"),
    ("Residual_3.Linear_1", "ff.net.0.proj"),
    ("Residual_3.Linear_2", "ff.net.2"),
)


@dataclass(frozen=True)
class UNetStructure:
    """The block structure of a U-Net.

    Attributes:
        depths: How many transformer blocks each attention of a level has, from the highest resolution to the lowest
            (0: the level has no attention).
        middle_depth: The same for the middle block.
        cross_attention: The class of the attentions in Refiners.
        projection: The class of their projections in Refiners.
        time: The path of the time embedding in Refiners.
        middle: The path of the middle block in Refiners.
        out: The path of the output block in Refiners.
        has_text_time_embedding: Whether pooled text and image size are embedded with the time.
    """

    depths: tuple[int, ...]
    middle_depth: int
    cross_attention: str
    projection: str
    time: str
    middle: str
    out: str
    has_text_time_embedding: bool


def unet_modules(structure: UNetStructure) -> Iterator[Names]:
    """Name every module of a U-Net that has weights.

    A level of the way down has two residual blocks, one of the way up three. Refiners and the original number the
    blocks through, one per skip connection; diffusers numbers them within their level.
    """
    yield from _embedding(structure.time, "time_embedding", "time_embed")
    if structure.has_text_time_embedding:
        yield from _embedding("TimestepEncoder.Sum.TextTimeEmbedding", "add_embedding", "label_emb.0")
    yield UNET / Names("DownBlocks.Chain_1.Conv2d", "conv_in", "input_blocks.0.0")
    last = len(structure.depths) - 1

    n = 1
    for level, depth in enumerate(structure.depths):
        ours, theirs = "DownBlocks.Chain_{}.{}", f"down_blocks.{level}"
        for i in range(2):
            block = Names(ours.format(n + 1, "ResidualBlock"), f"{theirs}.resnets.{i}", f"input_blocks.{n}.0")
            yield from _modules(UNET / block, UNET_RESIDUAL_BLOCK)
            block = Names(
                ours.format(n + 1, structure.cross_attention), f"{theirs}.attentions.{i}", f"input_blocks.{n}.1"
            )
            yield from _attention(UNET / block, depth, structure.projection)
            n += 1
        if level < last:
            ours = ours.format(n + 1, "Downsample.Conv2d")
            yield UNET / Names(ours, f"{theirs}.downsamplers.0.conv", f"input_blocks.{n}.0.op")
            n += 1

    middle = UNET / Names(structure.middle, "mid_block", "middle_block")
    yield from _modules(middle / Names("ResidualBlock_1", "resnets.0", "0"), UNET_RESIDUAL_BLOCK)
    attention = middle / Names(structure.cross_attention, "attentions.0", "1")
    yield from _attention(attention, structure.middle_depth, structure.projection)
    yield from _modules(middle / Names("ResidualBlock_2", "resnets.1", "2"), UNET_RESIDUAL_BLOCK)

    n = 0
    for level, depth in enumerate(reversed(structure.depths)):
        ours, theirs = "UpBlocks.Chain_{}.{}", f"up_blocks.{level}"
        for i in range(3):
            block = Names(ours.format(n + 1, "ResidualBlock"), f"{theirs}.resnets.{i}", f"output_blocks.{n}.0")
            yield from _modules(UNET / block, UNET_RESIDUAL_BLOCK)
            block = Names(
                ours.format(n + 1, structure.cross_attention), f"{theirs}.attentions.{i}", f"output_blocks.{n}.1"
            )
            yield from _attention(UNET / block, depth, structure.projection)
            n += 1
        if level < last:  # part of the level's last block: after its attention, if it has one
            ours, original = ours.format(n, "Upsample.Conv2d"), f"output_blocks.{n - 1}.{2 if depth else 1}.conv"
            yield UNET / Names(ours, f"{theirs}.upsamplers.0.conv", original)

    yield UNET / Names(f"{structure.out}.GroupNorm", "conv_norm_out", "out.0")
    yield UNET / Names(f"{structure.out}.Conv2d", "conv_out", "out.2")


def autoencoder_modules(levels: int = 4) -> Iterator[Names]:
    """Name every module of the autoencoder that has weights.

    Refiners counts the middle block as one more level: the encoder's last, the decoder's first.
    """
    encoder = AUTOENCODER / Names("Encoder", "encoder", "encoder")
    yield encoder / Names("Conv2d", "conv_in", "conv_in")
    for level in range(levels):
        block = encoder / Names(f"Chain_1.Chain_{level + 1}", f"down_blocks.{level}", f"down.{level}")
        for i in range(2):
            yield from _modules(
                block / Names(f"Resnet_{i + 1}", f"resnets.{i}", f"block.{i}"), AUTOENCODER_RESIDUAL_BLOCK
            )
        if level < levels - 1:
            yield block / Names("Downsample.Conv2d", "downsamplers.0.conv", "downsample.conv")
    yield from _autoencoder_middle(encoder / Names(f"Chain_1.Chain_{levels + 1}", "mid_block", "mid"))
    yield encoder / Names("Chain_2.GroupNorm", "conv_norm_out", "norm_out")
    yield encoder / Names("Chain_2.Conv2d", "conv_out", "conv_out")
    yield AUTOENCODER / Names("Encoder.Chain_3.Conv2d", "quant_conv", "quant_conv")

    yield AUTOENCODER / Names("Decoder.Conv2d_1", "post_quant_conv", "post_quant_conv")
    decoder = AUTOENCODER / Names("Decoder", "decoder", "decoder")
    yield decoder / Names("Conv2d_2", "conv_in", "conv_in")
    yield from _autoencoder_middle(decoder / Names("Chain_1.Chain_1", "mid_block", "mid"))
    for level in range(levels):  # the original counts the decoder's levels from the highest resolution, too
        block = decoder / Names(f"Chain_1.Chain_{level + 2}", f"up_blocks.{level}", f"up.{levels - 1 - level}")
        for i in range(3):
            yield from _modules(
                block / Names(f"Resnet_{i + 1}", f"resnets.{i}", f"block.{i}"), AUTOENCODER_RESIDUAL_BLOCK
            )
        if level < levels - 1:
            yield block / Names("Upsample.Conv2d", "upsamplers.0.conv", "upsample.conv")
    yield decoder / Names("Chain_2.GroupNorm", "conv_norm_out", "norm_out")
    yield decoder / Names("Chain_2.Conv2d", "conv_out", "conv_out")


def _modules(block: Names, modules: tuple[Names, ...]) -> Iterator[Names]:
    for module in modules:
        yield block / module


def _embedding(refiners: str, diffusers: str, original: str) -> Iterator[Names]:
    embedding = UNET / Names(refiners, diffusers, original)
    yield embedding / Names("Linear_1", "linear_1", "0")
    yield embedding / Names("Linear_2", "linear_2", "2")


def _attention(block: Names, depth: int, projection: str) -> Iterator[Names]:
    if depth == 0:
        return
    yield block / Names("Chain_1.GroupNorm", "norm", "norm")
    yield block / Names(f"Chain_1.{projection}", "proj_in", "proj_in")
    for i in range(depth):
        ours = "CrossAttentionBlock" if depth == 1 else f"CrossAttentionBlock_{i + 1}"
        for refiners, name in TRANSFORMER_BLOCK:
            theirs = f"transformer_blocks.{i}.{name}"
            yield block / Names(f"Chain_2.{ours}.{refiners}", theirs, theirs)
    yield block / Names(f"Chain_3.{projection}", "proj_out", "proj_out")


def _autoencoder_middle(block: Names) -> Iterator[Names]:
    yield from _modules(block / Names("Resnet_1", "resnets.0", "block_1"), AUTOENCODER_RESIDUAL_BLOCK)
    yield from _modules(block / Names("Residual", "attentions.0", "attn_1"), AUTOENCODER_ATTENTION)
    yield from _modules(block / Names("Resnet_2", "resnets.1", "block_2"), AUTOENCODER_RESIDUAL_BLOCK)
