"""``python -m e2d_lib`` is ``e2d``."""

import sys

from e2d_lib.cli import main

sys.exit(main())
