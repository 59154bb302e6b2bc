"""What goes beside StyleAligned: LoRAs, image prompts and control images, from the files that people have."""

from style_aligned.models.extras.lora import FileLora

__all__ = ["FileLora"]
