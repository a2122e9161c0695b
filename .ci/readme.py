"""Print the shell commands of the README's code block that follows ``<!-- ci: NAME -->``. Usage: readme.py NAME"""

from __future__ import annotations

import re
import sys
from pathlib import Path

name = sys.argv[1]
readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
block = re.search(rf"<!-- ci: {re.escape(name)} -->\n+```sh\n(.*?)```", readme, re.DOTALL)
if block is None:
    sys.exit(f"README.md: no sh block after <!-- ci: {name} -->")
print(block[1], end="")
