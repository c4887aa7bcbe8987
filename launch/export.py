"""export/: a run as a Hugging Face directory that stock transformers loads, with its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datamodules.build import TECHNIQUE
from launch.run_dir import Run, replaced_whole

CARD = """---
library_name: transformers
language: zh
pipeline_tag: {task}
---

# {model} on {data}

Trained by kexue-lightning ({target}) on {corpus}.

| | |
|---|---|
{scores}

Scores are of the validation and test splits; {about_scores}

## Use

{code}

With kexue-lightning: `python train.py stage=predict ckpt_path=THIS_DIRECTORY {command}`
"""


def export_run(run: Run, model: Any, datamodule: Any) -> None:
    """Write `<run>/export/`: weights, tokenizer, model card, and what this project needs to load it as a technique."""
    cls, tokenizer = type(model), datamodule.tokenizer
    technique = {
        "_target_": f"{cls.__module__}.{cls.__qualname__}",
        **model.exported_options(),
        "init_from": None,
    }
    with replaced_whole(run.directory / "export") as directory:
        usage = model.export(directory)
        needs = ""
        if tokenizer is not None:
            tokenizer.save(directory, datamodule.max_length)
            needs = "; needs rjieba" if _tokenizer_class(directory) == "RoFormerTokenizer" else ""
        (directory / TECHNIQUE).write_text(
            json.dumps(technique, ensure_ascii=False, indent=1), encoding="utf-8"
        )
        card = CARD.format(
            task=usage.task,
            model=run.model,
            data=run.data,
            target=technique["_target_"],
            corpus=_corpus(run),
            scores="\n".join(
                f"| {name} | {float(run.metrics[name]):.4f} |" for name in score_names(run.metrics)
            ),
            about_scores=usage.scores,
            code=usage.code.replace("{needs}", needs),
            command=usage.command,
        )
        if tokenizer is not None:
            card += f"\n## Tokens\n\n{_tokens(tokenizer)}\n"
        (directory / "README.md").write_text(card, encoding="utf-8")


def score_names(metrics: dict[str, Any]) -> list[str]:
    """The metrics that say how good a model is, and what they are to be held against."""
    return sorted(name for name in metrics if name.startswith(("val/", "test/", "baseline/")))


def _tokenizer_class(directory: Path) -> str | None:
    return json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8")).get(
        "tokenizer_class"
    )


def _corpus(run: Run) -> str:
    if run.data_facts.get("synthetic"):
        return f"the embedded synthetic sample of `data={run.data}` (not a real corpus)"
    return f"`data={run.data}` from `{run.source}`"


def _tokens(tokenizer: Any) -> str:
    differences = tokenizer.stock_differences()
    head = f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} entries."
    if not differences:
        return f"{head} Stock `AutoTokenizer` gives the same ids."
    listed = "\n".join(f"- {difference}" for difference in differences)
    return f"{head} Stock `AutoTokenizer` gives the same ids but for:\n\n{listed}"
