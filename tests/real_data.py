"""Real corpora, for tests that run where they are present: `REAL_DATA` names their folder."""

import os
from pathlib import Path

import pytest

REAL_DATA = os.environ.get("REAL_DATA")
needs_real_data = pytest.mark.skipif(
    not REAL_DATA, reason="REAL_DATA is unset: the real corpora are not on this machine"
)


def real(*parts: str) -> str:
    """The path of a file or folder there; the test is skipped where it is missing."""
    path = Path(REAL_DATA or "", *parts)
    if not path.exists():
        pytest.skip(f"REAL_DATA has no {'/'.join(parts)}")
    return str(path)
