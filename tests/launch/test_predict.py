"""What predictions are asked for: typed texts and pairs, files of every kind, arrays; and options typed anew."""

import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from omegaconf import OmegaConf

from datamodules.array_input import ArrayInput
from datamodules.corpus import DataError
from datamodules.text import TextInput
from datamodules.tokenizers.char import CharTokenizer
from launch.predict import load_for_prediction, load_technique, read_queries
from lightning_modules.classifier import Classifier

TEXTS = TextInput(CharTokenizer(vocab=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "天"]), 16)
DIALOGUES = TextInput(TEXTS.tokenizer, 16, dialogues=True)
VECTORS = ArrayInput((2,))
CLASSIFIER = "lightning_modules.classifier.Classifier"


def lines(path, *records):
    path.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8"
    )
    return str(path)


def contents(source, inputs=TEXTS):
    return [query.content for query in read_queries(source, inputs)]


def test_typed_texts_and_pairs():
    typed = OmegaConf.create(["天地", ["天", "地"], ["玄黄"], 2024, ["一", "二", "三"]])
    assert contents(typed) == ["天地", ("天", "地"), "玄黄", "2024", ("一", "二", "三")]
    assert {query.id for query in read_queries(typed, TEXTS)} == {None}


@pytest.mark.parametrize(
    "items, said",
    [
        ([], "predict.input=[]: holds nothing to predict"),
        (["天", " "], "predict.input, item 2: empty text"),
        (["天", None], "predict.input, item 2: no text but NoneType null"),
        ([["天", ""]], "predict.input, item 1: empty text"),
        ([[]], "predict.input, item 1: no text"),
        ([{"text": "天"}], "predict.input, item 1: no text but"),
    ],
)
def test_typed_items_that_are_no_texts(items, said):
    with pytest.raises(DataError) as caught:
        read_queries(OmegaConf.create(items), TEXTS)
    assert str(caught.value).startswith(said)


def test_a_text_a_line(tmp_path):
    for name in ("a.txt", "a", "a.log"):
        (tmp_path / name).write_text("天地\n\n 玄黄 \n", encoding="utf-8")
        assert contents(str(tmp_path / name)) == ["天地", "玄黄"]


def test_records_with_pairs_and_ids(tmp_path):
    path = lines(
        tmp_path / "a.jsonl",
        {"text": "天", "id": 7},
        {"text": "地", "text_pair": "玄", "id": "x"},
        {"text": "黄"},
    )
    assert read_queries(path, TEXTS) == [("天", 7), (("地", "玄"), "x"), ("黄", None)]
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert read_queries(str(packed), TEXTS) == read_queries(path, TEXTS)


def test_tables(tmp_path):
    (tmp_path / "a.csv").write_text('text,text_pair,id\n"天,地",玄,0\n黄,,1\n', encoding="utf-8")
    assert read_queries(str(tmp_path / "a.csv"), TEXTS) == [(("天,地", "玄"), "0"), ("黄", "1")]
    (tmp_path / "a.tsv").write_text("label\ttext\nx\t天\n", encoding="utf-8")
    assert contents(str(tmp_path / "a.tsv")) == ["天"]
    pyarrow.parquet.write_table(pyarrow.table({"sentence": ["天"], "idx": [3]}), tmp_path / "a.parquet")
    assert read_queries(str(tmp_path / "a.parquet"), TEXTS) == [("天", 3)]


@pytest.mark.parametrize(
    "record, content",
    [
        ({"id": 0, "sentence": "天", "keywords": ""}, "天"),
        ({"id": 0, "sentence1": "天", "sentence2": "地"}, ("天", "地")),
        ({"id": 0, "abst": "天地玄黄", "keyword": ["天", "地"]}, ("天地玄黄", "天；地")),
    ],
)
def test_the_keys_of_clues_tasks(tmp_path, record, content):
    assert read_queries(lines(tmp_path / "test.json", record), TEXTS) == [(content, 0)]


def test_records_that_cannot_be_used_are_all_told(tmp_path):
    path = lines(
        tmp_path / "a.jsonl", {"text": 3}, {"content": "天"}, {"sentence1": "天"}, {"text": "地"}, ["天"]
    )
    with pytest.raises(DataError) as caught:
        read_queries(path, TEXTS)
    told = str(caught.value)
    assert told.startswith("4 bad rows:")
    assert "line 1: no text but int 3" in told
    assert (
        "line 2: no text (it has: 'content'); name it text or sentence or sentence1, sentence2 or abst, keyword"
        in told
    )
    assert "line 3: no key 'sentence2' (it has: 'sentence1')" in told
    assert "line 5: no JSON object, list" in told


def test_typed_dialogues():
    typed = OmegaConf.create(["天地", ["天", "地"], ["玄黄"], 2024, ["一", "二", "三"]])
    assert contents(typed, DIALOGUES) == [("天地",), ("天", "地"), ("玄黄",), ("2024",), ("一", "二", "三")]
    with pytest.raises(DataError, match="predict.input, item 2: empty text"):
        read_queries(OmegaConf.create(["天", ["地", ""]]), DIALOGUES)


def test_files_of_dialogues(tmp_path):
    (tmp_path / "a.txt").write_text("天\t地\n 玄 \n", encoding="utf-8")
    for name in ("a.txt", "a.tsv", "a"):
        (tmp_path / name).write_bytes((tmp_path / "a.txt").read_bytes())
        assert read_queries(str(tmp_path / name), DIALOGUES) == [(("天", "地"), None), (("玄",), None)]
    records = [
        {"id": 7, "history": ["天"], "reply": "地"},
        {"idx": 0, "messages": [{"role": "user", "content": "玄"}]},
    ]
    expected = [(("天", "地"), 7), (("玄",), 0), (("黄",), None)]
    assert read_queries(lines(tmp_path / "a.jsonl", *records, ["黄"]), DIALOGUES) == expected
    (tmp_path / "a.json").write_text(json.dumps({"train": [["天"]], "test": records}), encoding="utf-8")
    assert read_queries(str(tmp_path / "a.json"), DIALOGUES) == expected[:2]


def test_spaces_of_segmented_dialogues_go(tmp_path):
    segmented, plain = ["今天 天气 很 好", "是 的"], ["iPhone 15 很好", "晚上好 大家"]
    assert contents(OmegaConf.create([segmented]), DIALOGUES) == [("今天天气很好", "是的")]
    assert contents(lines(tmp_path / "a.jsonl", segmented, ["你 好"]), DIALOGUES)[1] == ("你好",)
    assert contents(OmegaConf.create([plain]), DIALOGUES) == [tuple(plain)]
    assert contents(OmegaConf.create([segmented])) == [tuple(segmented)]


def test_bad_dialogues_are_all_told(tmp_path):
    path = lines(tmp_path / "a.jsonl", ["天"], [], ["天", ""], {"text": "天"}, "天")
    with pytest.raises(DataError) as caught:
        read_queries(path, DIALOGUES)
    told = str(caught.value)
    assert told.startswith("4 bad rows:")
    assert "line 2: a dialogue of no turn" in told and "line 3: turn 2: empty text" in told
    assert "line 4: none of the keys dialog, " in told and "(it has: 'text')" in told
    assert 'line 5: no dialogue (an array of texts), str "天"' in told
    (tmp_path / "a.csv").write_text("text\n天\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"dialogues are read from txt, .* not from csv"):
        read_queries(str(tmp_path / "a.csv"), DIALOGUES)
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(DataError, match="holds arrays, and the run was trained on texts"):
        read_queries(str(tmp_path / "a.npy"), DIALOGUES)


@pytest.mark.parametrize(
    "inputs, options, kept",
    [
        (DIALOGUES, {}, (4, 5)),
        (DIALOGUES, {"max_length": 10}, (5,)),
        (DIALOGUES, {"max_length": 5}, (3,)),
        (DIALOGUES, {"truncation": "first_turns"}, (6, 4)),
        (DIALOGUES, {"truncation": "longest", "max_length": 13}, (3, 3, 3)),
        (DIALOGUES, {"max_length": 30}, (6, 4, 5)),
        (TEXTS, {}, (4, 4, 4)),
    ],
)
def test_a_dialogue_that_is_too_long_loses_its_oldest_turns(inputs, options, kept):
    batch = inputs.encode([("天" * 6, "天" * 4, "天" * 5)], **options)
    cls, sep, char = 2, 3, 5
    assert batch.input_ids.tolist() == [cls, *(token for turn in kept for token in [*[char] * turn, sep])]
    assert batch.segment_ids.tolist() == [
        0,
        *(place % 2 for place, turn in enumerate(kept) for _ in range(turn + 1)),
    ]


def test_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(3, 2))
    queries = read_queries(str(tmp_path / "a.npy"), VECTORS)
    assert [query.content.tolist() for query in queries] == [[0, 1], [2, 3], [4, 5]]
    assert [query.id for query in queries] == [0, 1, 2]
    np.save(tmp_path / "none.npy", np.zeros((0, 2)))
    with pytest.raises(DataError, match="holds nothing to predict"):
        read_queries(str(tmp_path / "none.npy"), VECTORS)


def test_arrays_for_texts_and_texts_for_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 2)))
    (tmp_path / "a.txt").write_text("天\n", encoding="utf-8")
    with pytest.raises(DataError, match="a.npy: holds arrays, and the run was trained on texts"):
        read_queries(str(tmp_path / "a.npy"), TEXTS)
    for source in (str(tmp_path / "a.txt"), OmegaConf.create(["天"])):
        with pytest.raises(DataError, match=r"the run was trained on arrays; give a \.npy file of \[N, 2\]"):
            read_queries(source, VECTORS)
    for inputs in (TEXTS, VECTORS):
        with pytest.raises(DataError, match="predict.input=none.npy: no such file"):
            read_queries("none.npy", inputs)


@pytest.fixture
def run(tmp_path):
    """The run of a classifier of vectors, as far as predictions need it: without a tokenizer."""
    options = {
        "backbone": {"_target_": "lightning_modules.networks.mlp.MLP", "hidden_sizes": [4]},
        "loss": {"_target_": "lightning_modules.losses.cross_entropy.CrossEntropy"},
        "dropout": 0.5,
        "posthoc_tau": 0.25,
        "facts": {
            "shape": [2], "label_names": ["a", "b"], "class_counts": [3, 1], "num_train_rows": 4, "multi_label": False,
            "sampler": None,
        },
    }  # fmt: skip
    model = Classifier(**options)
    model.configure_model()
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    OmegaConf.save({"model": {"_target_": CLASSIFIER}}, tmp_path / "run/config.yaml")
    saved = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save(saved, tmp_path / "run/checkpoints/best.ckpt")
    return tmp_path / "run"


def test_a_run_on_arrays_needs_no_tokenizer(run):
    model, inputs = load_for_prediction(str(run), CLASSIFIER)
    assert inputs == ArrayInput((2,)) and model.hparams.dropout == 0.5
    assert model.eval().predict_classify([np.ones(2), np.zeros(2)], inputs)[1].keys() >= {"label", "score"}


def test_options_of_evaluation_may_be_typed_anew_others_are_the_runs(run):
    typed = {"posthoc_tau": 1.0, "dropout": 0.1}
    model = load_technique(run, run / "checkpoints/best.ckpt", CLASSIFIER, typed)
    assert (model.hparams.posthoc_tau, model.hparams.dropout) == (1.0, 0.5)
    assert load_technique(run, run / "checkpoints/best.ckpt", CLASSIFIER).hparams.posthoc_tau == 0.25


def test_what_a_run_lacks_is_named(run):
    OmegaConf.save({"model": {"_target_": "mine.Mine"}}, run / "config.yaml")
    with pytest.raises(DataError, match="was written by mine.Mine, which is not of this project"):
        load_for_prediction(str(run), CLASSIFIER)
    (run / "config.yaml").unlink()
    with pytest.raises(DataError, match="its run is needed too, and .* has no config.yaml"):
        load_for_prediction(str(run / "checkpoints/best.ckpt"), CLASSIFIER)
