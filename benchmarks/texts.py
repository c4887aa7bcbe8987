"""The texts that benchmarks run on."""

from __future__ import annotations

from pathlib import Path

from datamodules.clue import SAMPLES
from datamodules.corpus import BadRows, DataError, read_jsonl

HELP = "files: a text a line, or .json/.jsonl with the key `sentence`; default: the embedded sample's titles"
JSON = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def read_texts(files: list[str] | None) -> list[str]:
    """The texts of `files`, or the embedded sample's training titles.

    Raises:
        DataError: a file is missing or unreadable, a row has no `sentence`, or there is no text at all.
    """
    texts: list[str] = []
    for file in files or [str(SAMPLES / "tnews" / "train.json")]:
        texts += _read_jsonl(file) if file.endswith(JSON) else _read_lines(file)
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise DataError(f"--text {' '.join(files or [])}: holds no text")
    return texts


def _read_jsonl(file: str) -> list[str]:
    texts, bad_rows = [], BadRows(0)
    for number, record in read_jsonl(file, bad_rows):
        if isinstance(record.get("sentence"), str):
            texts.append(record["sentence"])
        else:
            bad_rows.add(file, number, "no text under the key 'sentence'")
    bad_rows.finish()
    return texts


def _read_lines(file: str) -> list[str]:
    try:
        # Not splitlines(): it would cut texts at U+2028 and the like.
        return Path(file).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--text {file}: cannot be read ({error})") from error
