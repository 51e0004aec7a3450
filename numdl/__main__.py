"""`python -m numdl` is the command `numdl`, for where its script is not on the path."""

import sys

from numdl import cli

if __name__ == "__main__":
    sys.exit(cli.main())
