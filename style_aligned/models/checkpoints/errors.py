"""The error of everything that has to do with weights on disk."""


class CheckpointError(ValueError):
    """Weights that cannot be loaded or converted: the message names the file, and the first tensor at fault."""
