"""LCCC, short-text conversations: the embedded sample, the published files in all their forms, the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from datamodules.dialogue import DialogueFiles
from datamodules.published import Publication, PublishedCorpus
from datamodules.text import Split

SAMPLE = Path(__file__).parent / "samples" / "lccc"
# The hub's own export of every dataset as parquet, in folders by configuration and split.
PARQUET_EXPORT = "refs/convert/parquet"
# The large corpus has one file only; it is evaluated on the base corpus' files.
TRAIN_FILES = {
    "base": ("LCCC-base_train.json", "lccc_base_train.jsonl", "base/train/*.parquet"),
    "large": ("LCCD.json", "LCCC-large.json", "lccc_large.jsonl", "large/train/*.parquet"),
}
EVALUATION_FILES = {
    "val": ("LCCC-base_valid.json", "lccc_base_valid.jsonl", "base/validation/*.parquet"),
    "test": ("LCCC-base_test.json", "lccc_base_test.jsonl", "base/test/*.parquet"),
}
SAMPLE_FILES = {"train": SAMPLE / "train.jsonl", "val": SAMPLE / "valid.jsonl", "test": SAMPLE / "test.jsonl"}
HELD_OUT = 0.01


class LCCC(DialogueFiles, PublishedCorpus):
    """LCCC (Wang et al. 2020, arXiv 2008.03946), or files of dialogues in its form; a row is a dialogue.

    Files have one JSON array of dialogues, one dialogue a line, or a parquet column `dialog`; a dialogue is an
    array of turns, or of another form that `turns_of` knows. Which spaces are LCCC's and which are the text's own: see
    `despaced`.

    Args:
        source: `sample` (embedded, synthetic), `hub`, or a folder that holds the published files.
        variant: `base`, or `large`, which trains on the large corpus and evaluates on base's files.
        revision: of the hub's repository; "refs/convert/parquet" is its export as parquet.
        overlap: as of `FileCorpus`, but "remove" by default: the large corpus holds base's test split.
        options: as of `DialogueFiles` and `PublishedCorpus`; of named training files without `val` and `split` a hundredth is held out.

    Raises:
        ValueError: an option's value cannot be used, or options contradict one another.
        DataError: a file or folder is not there.
    """

    def __init__(
        self,
        source: str = "sample",
        variant: Literal["base", "large"] = "base",
        revision: str | None = None,
        overlap: Literal["remove", "refuse", "keep"] = "remove",
        **options: Any,
    ):
        if variant not in TRAIN_FILES:
            raise ValueError(f"variant={variant}: must be one of {', '.join(TRAIN_FILES)}")
        super().__init__(
            source=source,
            revision=revision,
            publication=_publication(variant, revision),
            spaces="remove",
            overlap=overlap,
            held_out=HELD_OUT if source == "sample" else None,
            **options,
        )

    def kind_of(self, path: Path) -> str:
        return "parquet" if path.suffix == ".parquet" else "json"  # whatever people call it


def _publication(variant: str, revision: str | None) -> Publication:
    files: dict[Split, tuple[str, ...]] = {"train": TRAIN_FILES[variant], **EVALUATION_FILES}
    exported = str(revision).startswith(PARQUET_EXPORT)
    return Publication(
        name="lccc",
        folder=f"a folder that holds {files['train'][0]}",
        files=files,
        repository="silver/lccc",
        hub_files={split: names[-1] if exported else f"{names[-2]}.gz" for split, names in files.items()},
        sample=SAMPLE_FILES,
        sample_of="dialogues",
    )
