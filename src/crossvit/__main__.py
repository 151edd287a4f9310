"""`python -m crossvit` is the `crossvit` command."""

import sys

from crossvit.cli import main

if __name__ == "__main__":  # a spawned training process imports this file too
    sys.exit(main())
