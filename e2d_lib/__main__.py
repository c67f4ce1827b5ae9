"""``python -m e2d_lib`` is ``e2d``."""

import sys

from e2d_lib.study.cli import main

if __name__ == "__main__":
    sys.exit(main())
