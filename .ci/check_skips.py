"""Read pytest's output, list what was skipped, and fail on a reason that the given file does not allow.

The file holds a reason a line; a skip is allowed when its reason starts with one of them. Lines with # are comments.
"""

import re
import sys
from pathlib import Path

allowed = [
    line
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
unexpected = 0
for line in sys.stdin:
    found = re.match(r"SKIPPED \[\d+\] (\S+?): (.*)", line)
    if found is None:
        continue
    known = any(found[2].startswith(reason) for reason in allowed)
    unexpected += not known
    print(f"skipped: {found[1]}: {found[2]}" + ("" if known else "   <- not in .ci/allowed_skips.txt"))
if unexpected:
    sys.exit(f"{unexpected} unexpected skip(s)")
