"""What is taken where nothing is given. It imports nothing, for the command line to start at once."""

STEPS = 30
GUIDANCE = 5.0
"""Strength of the classifier-free guidance, as in Refiners and diffusers for SDXL."""

EMBEDDED_GUIDANCE = 2.0
"""The same for the embedded model: stronger, and targets that name no style leave the reference's."""

EMBEDDED_OPTIONS = {"share_group_norm": True}
"""Options of the adapter for the embedded model: its grounds follow the reference much more closely with them."""
