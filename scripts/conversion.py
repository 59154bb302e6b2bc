"""The command line that `convert_sdxl.py` and `convert_sd15.py` share."""

import argparse
import sys

from style_aligned.models.checkpoints import CheckpointError, convert_checkpoint


def main(architecture: str) -> int:
    parser = argparse.ArgumentParser(
        description=f"Convert the weights of {architecture} to Refiners' format, one tensor at a time."
    )
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        help="a diffusers folder, a single file with the original names, or a name on the Hugging Face hub",
    )
    parser.add_argument("--to", dest="target", required=True, help="the folder to write, which must not exist yet")
    parser.add_argument("--half", action="store_true", help="store the weights in float16")
    parser.add_argument("--dry-run", action="store_true", help="check everything and write nothing")
    arguments = parser.parse_args()
    try:
        conversion = convert_checkpoint(
            arguments.source,
            arguments.target,
            half=arguments.half,
            dry_run=arguments.dry_run,
            architecture=architecture,
        )
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    print(conversion)
    return 0
