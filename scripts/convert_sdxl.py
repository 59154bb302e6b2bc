"""Convert the weights of Stable Diffusion XL to Refiners' format.

python scripts/convert_sdxl.py --from SOURCE --to FOLDER [--half]
"""

import sys

from conversion import main

if __name__ == "__main__":
    sys.exit(main("Stable Diffusion XL"))
