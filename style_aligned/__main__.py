"""`python -m style_aligned` is `style-aligned`."""

import sys

from style_aligned.cli import main

sys.exit(main())
