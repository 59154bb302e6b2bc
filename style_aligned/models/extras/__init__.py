"""What goes beside StyleAligned, from the files that people have."""

from style_aligned.models.extras.beside import Extras
from style_aligned.models.extras.control import ControlModel, load_control_model
from style_aligned.models.extras.embedding import FileEmbedding
from style_aligned.models.extras.image_encoder import load_image_encoder
from style_aligned.models.extras.ip_adapter import load_ip_adapter
from style_aligned.models.extras.lora import FileLora

__all__ = [
    "ControlModel",
    "Extras",
    "FileEmbedding",
    "FileLora",
    "load_control_model",
    "load_image_encoder",
    "load_ip_adapter",
]
