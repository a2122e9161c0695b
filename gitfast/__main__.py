"""Run the command line: ``python -m gitfast``."""

import sys

from gitfast.cli import main

sys.exit(main())
