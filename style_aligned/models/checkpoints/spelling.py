"""One name for each tensor, whatever a program called it, and what no model needs."""

import re
from collections.abc import Iterable
from dataclasses import replace

from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.files import StoredTensor

ATTENTION = r"^(first_stage_model\.(?:en|de)coder\.mid\.attn_1)"
TEXT = r"(?=(?:embeddings|encoder|final_layer_norm)\.)"
WRAPPERS = r"(^|(?<=\.))((_orig_mod|module)\.)+"  # of a compiled or parallel module
RULES = (
    (r"^(text_encoder(_2)?)\.text_model\.", r"\1."),
    (r"^((vae|first_stage_model)\..+\.attentions\.0)\.query\.", r"\1.to_q."),
    (r"^((vae|first_stage_model)\..+\.attentions\.0)\.key\.", r"\1.to_k."),
    (r"^((vae|first_stage_model)\..+\.attentions\.0)\.value\.", r"\1.to_v."),
    (r"^((vae|first_stage_model)\..+\.attentions\.0)\.proj_attn\.", r"\1.to_out.0."),
    (ATTENTION + r"\.(to_q|query)\.", r"\1.q."),
    (ATTENTION + r"\.(to_k|key)\.", r"\1.k."),
    (ATTENTION + r"\.(to_v|value)\.", r"\1.v."),
    (ATTENTION + r"\.(to_out\.0|to_out|proj_attn|out)\.", r"\1.proj_out."),
    (r"^cond_stage_model\.(transformer\.)?(text_model\.)?" + TEXT, "cond_stage_model.transformer.text_model."),
    (
        r"^conditioner\.embedders\.([01])\.(transformer\.|model\.)?(text_model\.)?" + TEXT,
        r"conditioner.embedders.\1.transformer.text_model.",
    ),
    (
        r"^conditioner\.embedders\.1\.(transformer\.)?(text_model\.)?text_projection\.weight$",
        "conditioner.embedders.1.model.text_projection.weight",
    ),
)
TEXT_ENCODER = r"(cond_stage_model|conditioner\.embedders\.\d+|text_encoder(_2)?)"
LEFTOVERS = (  # of training, of whole CLIPs, and constants that every implementation computes for itself
    r"model_ema\..+",
    r"(denoiser|model_sampling|embedding_manager|safety_checker|optimizer)\..+",
    r"first_stage_model\.(loss|model_ema|discriminator)\..+",
    r"(betas|logvar|lvlb_weights|scale_factor|global_step|step|epoch|iteration|sigmas|log_sigmas)",
    r"([a-z0-9]+_)*alphas_cumprod(_prev)?",
    r"(posterior|ddim)_[a-z0-9_]+",
    r"(.+\.)?(v_pred|ztsnr|scaled_fp8)",
    r".+\.(scale_input|input_scale|comfy_quant)",
    rf"{TEXT_ENCODER}\.(.+\.)?(logit_scale|attn_mask|position_ids)",
    rf"{TEXT_ENCODER}\.(.+\.)?(vision_model\..+|visual\..+|visual_projection\.weight)",
    r"(cond_stage_model|conditioner\.embedders\.0|text_encoder)\.(.+\.)?text_projection(\.weight)?",
    r"conditioner\.embedders\.[2-9]\..+",
)
SCALES = (".scale_weight", ".weight_scale")


def canonical_key(key: str) -> str:
    """Return the one name of a tensor that has had several over the years.

    Args:
        key: Its name in a single file, or in a folder, with the name of the part in front.

    Example:
        >>> canonical_key("text_encoder.text_model.final_layer_norm.bias")
        'text_encoder.final_layer_norm.bias'
        >>> canonical_key("first_stage_model.encoder.mid.attn_1.to_q.weight")
        'first_stage_model.encoder.mid.attn_1.q.weight'
    """
    key = re.sub(WRAPPERS, "", key)
    for pattern, replacement in RULES:
        key = re.sub(pattern, replacement, key)
    return key


def is_leftover(key: str) -> bool:
    """Return whether no model needs a tensor, by its canonical name."""
    return any(re.fullmatch(pattern, key) for pattern in LEFTOVERS)


def by_canonical_key(tensors: Iterable[StoredTensor], part: str = "") -> dict[str, StoredTensor]:
    """Name tensors by their canonical keys, with the scale of each that has one.

    Args:
        tensors: The tensors of one file.
        part: The part of a model that the file holds, as the start of the keys.

    Raises:
        CheckpointError: If a tensor is there under two names.
    """
    named: dict[str, StoredTensor] = {}
    for tensor in tensors:
        key = canonical_key(f"{part}.{tensor.key}" if part else tensor.key)
        if key in named:
            raise CheckpointError(f"{tensor.path}: the tensor {tensor.key!r} is there twice, as {named[key].key!r} too")
        named[key] = tensor
    for key, scale in list(named.items()):
        suffix = next((suffix for suffix in SCALES if key.endswith(suffix)), None)
        if suffix is not None and (weight := f"{key.removesuffix(suffix)}.weight") in named:
            named[weight] = replace(named[weight], scale=scale)
            del named[key]
    return named
