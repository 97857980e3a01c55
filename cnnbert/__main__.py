"""`python -m cnnbert` is the command `cnnbert`."""

import sys

from cnnbert.cli import main

if __name__ == "__main__":
    sys.exit(main())
