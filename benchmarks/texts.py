"""The texts that benchmarks run on."""

from __future__ import annotations

from datamodules.clue import SAMPLES
from datamodules.corpus import BadRows, DataError
from datamodules.files import read_jsonl, read_values

HELP = "files: a text a line, or .json/.jsonl with the key `sentence`; default: the embedded sample's titles"
JSON = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def read_texts(files: list[str] | None) -> list[str]:
    """The texts of `files`, or the embedded sample's training titles.

    Raises:
        DataError: a file is missing or unreadable, a row has no `sentence`, or there is no text at all.
    """
    texts: list[str] = []
    for file in files or [str(SAMPLES / "tnews" / "train.json")]:
        texts += _read(file)
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise DataError(f"--text {' '.join(files or [])}: holds no text")
    return texts


def _read(file: str) -> list[str]:
    texts, bad_rows = [], BadRows(None)
    if not file.endswith(JSON):
        texts = [line for _, line in read_values(file, bad_rows, "txt")]
    else:
        for place, record in read_jsonl(file, bad_rows):
            if isinstance(record.get("sentence"), str):
                texts.append(record["sentence"])
            else:
                bad_rows.add(file, place, "no text under the key 'sentence'")
    bad_rows.finish()
    return texts
