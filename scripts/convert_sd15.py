"""Convert the weights of Stable Diffusion 1.5 to Refiners' format.

python scripts/convert_sd15.py --from SOURCE --to FOLDER [--half]
"""

import sys

from conversion import main

if __name__ == "__main__":
    sys.exit(main("Stable Diffusion 1.5"))
