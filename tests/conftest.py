"""Shared by all tests: nothing reads the network, nothing writes outside pytest's own directories."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Token caches and whatever else goes to a cache directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> tuple[str, ...]:
    """The options that name a small corpus: the first titles of the embedded sample's splits."""
    import datamodules

    folder = tmp_path_factory.mktemp("corpus")
    sample = os.path.join(os.path.dirname(datamodules.__file__), "samples", "tnews")
    for split, rows in (("train", 200), ("dev", 60), ("test", 60)):
        with open(os.path.join(sample, f"{split}.json"), encoding="utf-8") as file:
            lines = [next(file) for _ in range(rows)]
        (folder / f"{split}.json").write_text("".join(lines), encoding="utf-8")
    return f"data.source={folder}", "data.max_length=32"


@pytest.fixture
def drawn(monkeypatch):
    """The figures behind the pictures that a test has drawn."""
    from launch import data_plots, plots
    from lightning_modules import pictures

    figures, save = [], pictures.save

    def keep(figure, path):
        figures.append(figure)
        return save(figure, path)

    for module in (plots, data_plots, pictures):
        monkeypatch.setattr(module, "save", keep)
    return figures
