"""``python -m tests.bench.shaping [part of a row's name …]``: the table, ours alone."""

from __future__ import annotations

import sys

from tests.bench.shaping.table import play, show

wanted = [one for one in sys.argv[1:] if not one.startswith("--")]
for row in play(wanted, ["ours"], detailed="--detail" in sys.argv):
    sys.stdout.write(show(row) + "\n")
    sys.stdout.flush()
