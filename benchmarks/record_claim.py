"""Write the section of a claim into docs/results.md, or anew where it is there, and its pictures into docs/images/.

    python benchmarks/record_claim.py runs/claims/wobert_speed

The section lies between two comments and is what the claim's report.md says; nothing in it is written by hand. Where
REAL_DATA is set, the command shows `$REAL_DATA` for that folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PICTURE = re.compile(r"\(plots/(\S+\.png)\)")


def section(claim: Path, name: str) -> str:
    """report.md as a section: its title one level deeper, its pictures where the docs have theirs."""
    text = (claim / "report.md").read_text(encoding="utf-8")
    text = PICTURE.sub(rf"(images/{name}_\1)", f"#{text}")
    real_data = os.environ.get("REAL_DATA")
    if real_data:
        text = text.replace(real_data.rstrip("/"), "$REAL_DATA")
    return text


def record(claim: Path, docs: Path = DOCS) -> str:
    """Record the claim that lies in the run directory `claim`; returns its section."""
    verdict = json.loads((claim / "verdict.json").read_text(encoding="utf-8"))
    name = verdict["claim"].replace("/", "-") + ("-full" if verdict["scale"] == "full" else "")
    opening, closing = f"<!-- claim {name} -->", f"<!-- end of claim {name} -->"
    block = f"{opening}\n{section(claim, name)}{closing}\n"
    results = docs / "results.md"
    text = results.read_text(encoding="utf-8")
    start = text.find(opening)
    if start < 0:
        text = f"{text.rstrip()}\n\n{block}"
    elif closing not in text:
        sys.exit(f"{results}: {closing} is missing behind {opening}")
    else:
        text = text[:start] + block + text[text.index(closing) + len(closing) + 1 :]
    for picture in (claim / "plots").glob("*.png"):
        (docs / "images").mkdir(exist_ok=True)
        shutil.copyfile(picture, docs / "images" / f"{name}_{picture.name}")
    results.write_text(text, encoding="utf-8")
    return block


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("claim", type=Path, help="the claim's run directory, runs/claims/NAME")
    claim = parser.parse_args(arguments).claim
    if not (claim / "verdict.json").is_file():
        name = claim.name.removesuffix("-full")
        scale = " claim.scale=full" * claim.name.endswith("-full")
        sys.exit(f"{claim}: holds no verdict; python train.py experiment=claims/{name}{scale} writes one")
    print(record(claim))


if __name__ == "__main__":
    main()
