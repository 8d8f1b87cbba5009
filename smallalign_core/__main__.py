"""`python -m smallalign_core`: the command line."""

import sys

from smallalign_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
