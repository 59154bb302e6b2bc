"""What goes beside StyleAligned: LoRAs and image prompts, from the files that people have."""

from style_aligned.models.extras.beside import Extras
from style_aligned.models.extras.image_encoder import load_image_encoder
from style_aligned.models.extras.ip_adapter import load_ip_adapter
from style_aligned.models.extras.lora import FileLora

__all__ = ["Extras", "FileLora", "load_image_encoder", "load_ip_adapter"]
