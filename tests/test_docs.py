"""The examples of docs/ run as they stand."""

import json
import os
import re
import shlex

import pytest
from real_data import needs_real_data
from running import REPOSITORY, TINY, finished, summary

EXTENDING = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
DATA = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")

# The files that docs/data.md names, as small as they can be.
FILES = {
    "poems.txt": [f"床前明月光，疑是地上霜{number}。" for number in range(300)],
    "my.csv": ["text,label", *(f"很好用{number},{'好坏'[number % 2]}评" for number in range(300))],
    "tagged.jsonl": [
        {"text": f"第{number}条", "tags": ["军事"] * (number % 2) + ["体育"] * (number % 3 == 0)}
        for number in range(300)
    ],
    "train.jsonl": [{"content": f"第{number}条", "category": "ab"[number % 2]} for number in range(300)],
    "dev.jsonl": [{"content": f"另{number}条", "category": "ab"[number % 2]} for number in range(100)],
    "pairs.csv": ["question,answer,same", *(f"问{number},答{number},{number % 2}" for number in range(300))],
    "titles.tsv": [f"第{number}个标题\t{number % 2}" for number in range(300)],
    "class.txt": ["财经", "体育"],
    "news.jsonl": [{"content": f"第{number}条新闻。" * 60} for number in range(100)],
}


def data_commands(real: bool) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", DATA, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("python train.py")]
    return [line for line in lines if ("$REAL_DATA" in line) == real and "source=hub" not in line]


def block(language: str, name: str) -> str:
    """The block whose first line names the file `name`."""
    [found] = re.findall(rf"^```{language}\n# \S*/{name}\n(.*?)^```", EXTENDING, re.MULTILINE | re.DOTALL)
    return found


def test_a_corpus_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "code" / "poems.py").write_text(block("python", "poems.py"), encoding="utf-8")
    (tmp_path / "conf" / "data" / "poems.yaml").write_text(block("yaml", "poems.yaml"), encoding="utf-8")
    lines = [f"静夜思|床前明月光，疑是地上霜{number}。" for number in range(300)]
    (tmp_path / "poems.txt").write_text("\n".join([*lines, "没有题目"]), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "code")
    options = ("data=poems", f"data.train={tmp_path / 'poems.txt'}", "+data.max_bad_rows=1", "debug=fast")
    finished(tmp_path / "run", f"hydra.searchpath=[file://{tmp_path}/conf]", *options, *TINY)
    told = summary(tmp_path / "run")
    assert told["source"] == str(tmp_path / "poems.txt")
    facts = told["data_facts"]["splits"]
    assert facts["train"]["num_rows"] == 270 and facts["val"]["num_rows"] == 30
    assert facts["train"]["num_texts"] == 540 and facts["train"]["left_out"] == {"bad rows": 1}


def test_every_file_that_the_docs_link_or_name_exists():
    for document in (REPOSITORY / "docs").glob("*.md"):
        text = document.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(((?!http)[^)]+)\)", text):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
        for path in re.findall(
            r"`((?:launch|datamodules|lightning_modules|benchmarks|conf)/[\w/]+\.\w+)`", text
        ):
            is_the_users = path.startswith("conf/local/")
            assert is_the_users or (REPOSITORY / path).exists(), f"{document.name}: {path}"


@pytest.mark.parametrize("command", data_commands(real=False))
def test_ones_own_texts(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, lines in FILES.items():
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        (tmp_path / name).write_text("\n".join(texts), encoding="utf-8")
    finished(tmp_path / "run", *shlex.split(command)[2:], *TINY, "debug=fast")
    facts = summary(tmp_path / "run")["data_facts"]["splits"]
    assert facts["train"]["num_rows"] >= 200 and facts["val"]["num_rows"] >= 10


@pytest.mark.slow
@needs_real_data
@pytest.mark.parametrize("command", data_commands(real=True))
def test_real_corpora(command, tmp_path):
    arguments = [os.path.expandvars(argument) for argument in shlex.split(command)[2:]]
    finished(tmp_path / "run", *arguments, *TINY, "debug=fast")
    assert summary(tmp_path / "run")["data_facts"]["splits"]["val"]["num_rows"] >= 100


def test_the_docs_show_commands_of_both_kinds():
    assert len(data_commands(real=False)) >= 6 and len(data_commands(real=True)) == 7
