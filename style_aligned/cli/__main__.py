"""`python -m style_aligned.cli` is `style-aligned`."""

import sys

from style_aligned.cli import main

sys.exit(main())
