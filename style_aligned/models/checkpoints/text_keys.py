"""The names of the text encoders' modules.

CLIP comes in the spelling of transformers, which diffusers' folders and the single files hold alike, except for SDXL's
second text encoder: a single file has it in the spelling of OpenCLIP, with the projections of queries, keys and values
fused into one tensor, and the last projection transposed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

TRANSFORMER_LAYER = (
    ("Residual_1.LayerNorm", "layer_norm1"),
    ("Residual_1.SelfAttention.Distribute.Linear_1", "self_attn.q_proj"),
    ("Residual_1.SelfAttention.Distribute.Linear_2", "self_attn.k_proj"),
    ("Residual_1.SelfAttention.Distribute.Linear_3", "self_attn.v_proj"),
    ("Residual_1.SelfAttention.Linear", "self_attn.out_proj"),
    ("Residual_2.LayerNorm", "layer_norm2"),
    ("Residual_2.FeedForward.Linear_1", "mlp.fc1"),
    ("Residual_2.FeedForward.Linear_2", "mlp.fc2"),
)
OPEN_CLIP = (
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
)


@dataclass(frozen=True)
class Source:
    """The tensor, or the part of one, that becomes a weight.

    Attributes:
        key: The name of the tensor in the source.
        third: Which third of its rows: 0, 1 or 2; all of them if `None`.
        transposed: Whether it is stored transposed.
    """

    key: str
    third: int | None = None
    transposed: bool = False


def text_modules(encoder: str, layers: int, *, skip_last: bool = False) -> Iterator[tuple[str, str]]:
    """Pair the modules of a text encoder in Refiners with their names in transformers.

    Args:
        encoder: Its path in Refiners, with a trailing dot unless it is empty.
        layers: The number of its layers.
        skip_last: Leave out the last layer and the final norm.
    """
    yield f"{encoder}Sum.TokenEncoder", "embeddings.token_embedding"
    yield f"{encoder}Sum.PositionalEncoder.Embedding", "embeddings.position_embedding"
    for i in range(layers - 1 if skip_last else layers):
        yield from transformer_layer(f"{encoder}TransformerLayer_{i + 1}", i)
    if not skip_last:
        yield f"{encoder}LayerNorm", "final_layer_norm"


def pooled_text_modules(encoder: str, layers: int) -> Iterator[tuple[str, str]]:
    """The same for a text encoder behind Refiners' `TextEncoderWithPooling`: its end is a branch of its own.

    What comes out of the last layer but one goes to the U-Net; the rest computes the pooled embedding alone.
    """
    yield from text_modules(f"Parallel.TextEncoderWithPooling.{encoder}.", layers, skip_last=True)
    end = "Parallel.TextEncoderWithPooling.Parallel.Chain"
    yield from transformer_layer(f"{end}.{encoder}.TransformerLayer", layers - 1)
    yield f"{end}.{encoder}.LayerNorm", "final_layer_norm"
    yield f"{end}.Linear", "text_projection"


def transformer_layer(layer: str, i: int) -> Iterator[tuple[str, str]]:
    for refiners, name in TRANSFORMER_LAYER:
        yield f"{layer}.{refiners}", f"encoder.layers.{i}.{name}"


def open_clip_source(key: str) -> Source:
    """Find a tensor of transformers' CLIP in OpenCLIP's spelling.

    Example:
        >>> open_clip_source("encoder.layers.3.self_attn.k_proj.bias")
        Source(key='transformer.resblocks.3.attn.in_proj_bias', third=1, transposed=False)
    """
    if key == "text_projection.weight":
        return Source("text_projection", transposed=True)
    third = None
    if match := re.fullmatch(r"(.+\.)self_attn\.([qkv])_proj\.(weight|bias)", key):
        key, third = f"{match[1]}attn.in_proj_{match[3]}", "qkv".index(match[2])
    for pattern, replacement in OPEN_CLIP:
        key = re.sub(pattern, replacement, key)
    return Source(key, third=third)
