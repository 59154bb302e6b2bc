"""The devices of this machine, by their names."""

import torch
from torch import device as Device

from style_aligned.words import show


def find_device(device: Device | str, name: str = "device") -> Device:
    """Return a device that PyTorch can compute on.

    Args:
        device: The device, or its name, such as `"cuda:1"`. `"auto"` takes CUDA, or else MPS, or else the CPU.
        name: What an error calls the argument.

    Raises:
        ValueError: If it is none, or none of this machine.
    """
    if device == "auto":
        return Device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        wanted = Device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"expected {name} to be auto, cpu, cuda, cuda:1, mps or xpu, got {show(device)}") from None
    count_devices = getattr(getattr(torch, wanted.type, None), "device_count", int)  # older versions lack some
    count: int = count_devices()
    if wanted.type not in ("cpu", "meta") and (wanted.index or 0) >= count:
        finds = f"{count} of them" if count else "none"
        raise ValueError(
            f"expected a {name} that is there, got {show(str(device))}: PyTorch {torch.__version__} finds {finds}"
        )
    return wanted
