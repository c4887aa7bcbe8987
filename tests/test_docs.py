"""The examples of docs/ run as they stand."""

import re

from running import REPOSITORY, TINY, finished, summary

EXTENDING = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")


def block(language: str, name: str) -> str:
    """The block whose first line names the file `name`."""
    [found] = re.findall(rf"^```{language}\n# \S*/{name}\n(.*?)^```", EXTENDING, re.MULTILINE | re.DOTALL)
    return found


def test_a_corpus_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "code" / "poems.py").write_text(block("python", "poems.py"), encoding="utf-8")
    (tmp_path / "conf" / "data" / "poems.yaml").write_text(block("yaml", "poems.yaml"), encoding="utf-8")
    lines = [f"床前明月光，疑是地上霜{number}。" for number in range(300)]
    (tmp_path / "poems.txt").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "code")
    options = ("data=poems", f"data.path={tmp_path / 'poems.txt'}", "debug=fast")
    finished(tmp_path / "run", f"hydra.searchpath=[file://{tmp_path}/conf]", *options, *TINY)
    told = summary(tmp_path / "run")
    assert told["source"] == str(tmp_path / "poems.txt")
    assert told["data_facts"]["splits"]["train"]["num_rows"] == 200
    assert told["data_facts"]["splits"]["val"]["num_rows"] == 100


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
