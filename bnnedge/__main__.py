"""``python -m bnnedge``, which is what ``torchrun -m bnnedge`` starts."""

import sys

from bnnedge.cli import main

if __name__ == "__main__":
    sys.exit(main())
