"""``python -m tests.bench.shaping [--all] [--detail] [part of a row's name …]``: the table.

Ours alone, or with ``--all`` beside the reference controllers; ``--detail`` shows each cell.
"""

from __future__ import annotations

import sys

from tests.bench.shaping.table import CONTROLLERS, play, show

wanted = [one for one in sys.argv[1:] if not one.startswith("--")]
controllers = list(CONTROLLERS) if "--all" in sys.argv else ["ours"]
for line in play(wanted, controllers, detailed="--detail" in sys.argv):
    sys.stdout.write(show(line) + "\n")
    sys.stdout.flush()
