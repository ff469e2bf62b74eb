"""`python -m robopolicy` is the command `robopolicy`."""

import sys

from robopolicy.cli import main

if __name__ == "__main__":
    sys.exit(main())
