"""``python -m bnnedge.cli``, the same as ``python -m bnnedge``."""

import sys

from bnnedge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
