"""Print the lines of the first code block after the heading "Set-up" of a README."""

import re
import sys
from pathlib import Path

text = Path(sys.argv[1]).read_text(encoding="utf-8")
block = re.search(r"^## Set-up\n.*?^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
for line in (block[1] if block else "").splitlines():
    if line.strip():
        print(line)
