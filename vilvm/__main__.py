"""``python -m vilvm`` is the command ``vilvm``."""

import sys

from vilvm.cli import main

if __name__ == "__main__":
    sys.exit(main())
