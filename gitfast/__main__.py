import sys

from gitfast.cli import main

sys.exit(main())
