"""Leaderboards of jobs that were written by hand."""

import csv
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from matplotlib.image import imread

from launch import leaderboard, leaderboard_plot
from launch.leaderboard import collect, job_directories, update, write

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = {"leaderboard.csv", "leaderboard.md", "leaderboard.png"}
BEST = {"best": {"monitor": "val/loss", "mode": "min"}}


def write_job(directory, *overrides, status="finished", error=None, **metrics):
    """A job directory as a run leaves it. `loss=2.0` is val/loss; overrides of options go into config.yaml, too."""
    config = {
        "seed": 1,
        "ckpt_path": None,
        "optimized_metric": "val/loss",
        "model": {"_target_": "somewhere.Model", "lr": 0.002, "seed": 1},
        "callbacks": BEST,
    }
    summary = {
        "model": "wobert",
        "data": "clue",
        "overrides": list(overrides),
        "metrics": {name if "/" in name else f"val/{name}": value for name, value in metrics.items()},
        "throughput": {"tokens_per_second": 1000.4 if status == "finished" else None},
        "world_size": 1,
        "wall_seconds": 61.5,
        "status": status,
        "error": error,
    }
    for override in overrides:
        option, _, value = override.partition("=")
        if option in ("model", "data"):
            summary[option] = value
        elif "/" not in option:
            *parents, name = option.lstrip("+").split(".")
            node = config
            for parent in parents:
                node = node[parent]
            node[name] = yaml.safe_load(value)
    config["model"]["seed"] = config["seed"]
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    (directory / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def edit(path, **changes):
    """Change entries of a summary.json or config.yaml; `...` takes one away."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) | changes
    kept = {name: value for name, value in content.items() if value is not ...}
    path.write_text(json.dumps(kept), encoding="utf-8")


def rows(directory):
    with open(directory / "leaderboard.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def column(directory, name):
    return [row[name] for row in rows(directory)]


def tables(directory):
    """The tables of leaderboard.md: lists of rows, the header first, without the rule."""
    found, lines = [], (directory / "leaderboard.md").read_text(encoding="utf-8").splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append([cell.strip() for cell in line.replace(r"\|", "¦").strip("|").split("|")])
    return [[header, *body] for header, _, *body in found]


@pytest.fixture
def figures(monkeypatch):
    """The figures that a test has drawn; a warning while drawing is an error."""
    drawn, save = [], leaderboard_plot.save

    def keep(figure, path):
        drawn.append(figure)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return save(figure, path)

    monkeypatch.setattr(leaderboard_plot, "save", keep)
    return drawn


def ticks(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def notes(axes):
    return [text.get_text() for text in axes.texts]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


# -------------------------------------------------------------------------------------------------- the table


def test_the_best_job_first_and_those_without_a_score_behind_it(tmp_path):
    for number, (status, loss) in enumerate(
        [("failed", None), ("finished", 2.5), ("running", None), ("finished", 2.0), ("finished", None)]
    ):
        error = "ValueError: a | b\nand more" if status == "failed" else None
        write_job(tmp_path / str(number), f"model.lr=0.{number + 1}", status=status, error=error, loss=loss)
    write_job(tmp_path / "10", "model.lr=0.7", status="interrupted", loss=1.0)
    update(tmp_path)
    assert {path.name for path in tmp_path.glob("lead*")} == FILES
    assert column(tmp_path, "job") == ["3", "1", "4", "2", "10", "0"]
    assert column(tmp_path, "rank") == ["1", "2", "", "", "", ""]
    assert column(tmp_path, "status")[3:] == ["running", "interrupted", "failed"]
    assert rows(tmp_path)[-1]["error"] == "ValueError: a | b"
    [table] = tables(tmp_path)
    assert table[-1][-1] == "ValueError: a ¦ b"
    assert (
        "6 jobs: 3 finished, 1 running, 1 interrupted, 1 failed" in (tmp_path / "leaderboard.md").read_text()
    )


def test_csv_has_every_metric_with_all_digits_and_md_the_main_ones(tmp_path):
    metrics = {"baseline/unigram_loss": 7.0, "train/loss": 2.5, "test/loss": 2.25, "lr-AdamW/weights": 1e-5}
    write_job(tmp_path / "0", loss=2.0123456789, masked_accuracy=0.5, **metrics)
    update(tmp_path)
    [row] = rows(tmp_path)
    assert list(row) == [
        "rank", "job", "status", "val/loss", "val/masked_accuracy", "test/loss", "train/loss",
        "baseline/unigram_loss", "lr-AdamW/weights", "tokens_per_second", "world_size", "wall_seconds", "error",
    ]  # fmt: skip
    assert (row["val/loss"], row["lr-AdamW/weights"]) == ("2.0123456789", "1e-05")
    assert (row["tokens_per_second"], row["world_size"], row["wall_seconds"]) == ("1000.4", "1", "61.5")
    [[header, cells]] = tables(tmp_path)
    assert header[3:6] == ["val/loss", "val/masked_accuracy", "test/loss"] and header[6] == "tokens/s"
    assert cells[3] == "2.0123"


def test_what_was_varied_has_a_column_with_the_default_where_it_was_not_typed(tmp_path):
    write_job(tmp_path / "0", "max_steps=5", "model.lr=0.01", loss=1.0)
    write_job(tmp_path / "1", "max_steps=5", "model=bert", loss=2.0)
    write_job(tmp_path / "2", "max_steps=5", "+model/regularizer=[a,b]", loss=3.0)
    write_job(tmp_path / "3", "max_steps=5", "ckpt_path=last", loss=4.0)  # continued, and not varied
    update(tmp_path)
    [table] = tables(tmp_path)
    assert [row[3:6] for row in table] == [
        ["model", "model.lr", "model/regularizer"],
        ["wobert", "0.01", ""],
        ["bert", "0.002", ""],
        ["wobert", "0.002", "[a,b]"],
        ["wobert", "0.002", ""],
    ]


def test_odd_values_stay_one_cell(tmp_path):
    write_job(tmp_path / "0", """model.note='a|b, "c" <d>'""", loss=1.0)
    write_job(tmp_path / "1", "model.note=体育", loss=2.0)
    write_job(tmp_path / "2", "model.note=[1,null]", loss=3.0)
    update(tmp_path)
    assert column(tmp_path, "model.note") == ['a|b, "c" <d>', "体育", "[1, null]"]
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert r'| a\|b, "c" \<d> |' in text and f"| 体育{' ' * 10} |" in text


def test_jobs_that_differ_only_in_seed_are_summed_up(tmp_path):
    losses = {("a", 1): 2.0, ("a", 2): 2.2, ("b", 1): 1.0, ("b", 2): None, ("c", 1): None}
    for number, ((name, seed), loss) in enumerate(losses.items()):
        status = "failed" if loss is None else "finished"
        more = {"accuracy": 0.5} if (name, seed) == ("a", 1) else {}
        write_job(
            tmp_path / str(number), f"model.name={name}", f"seed={seed}", status=status, loss=loss, **more
        )
    update(tmp_path)
    jobs, means = tables(tmp_path)
    assert len(jobs) == 1 + 5
    assert means == [
        ["rank", "model.name", "n", "seeds", "val/loss", "val/accuracy"],
        ["1", "b", "1", "1", "1.0000", ""],
        ["2", "a", "2", "1 2", "2.1000 ± 0.1414", "0.5000 (n=1)"],
        ["", "c", "0", "", "", ""],
    ]
    assert len(rows(tmp_path)) == 5  # the csv stays a table of jobs


@pytest.mark.parametrize(
    ("metric", "callbacks", "lowest_first"),
    [
        ("val/bits_per_char", {}, True),
        ("val/f1", {}, False),
        ("val/f1", {"stop": {"monitor": "val/f1", "mode": "min"}}, True),
        ("val/loss", {"stop": {"monitor": "val/loss", "mode": "max"}}, False),
        ("val/perplexity", BEST, True),
    ],
)
def test_the_direction_is_the_callbacks_or_follows_from_the_name(tmp_path, metric, callbacks, lowest_first):
    for number, value in enumerate((1.0, 3.0, 2.0)):
        write_job(tmp_path / str(number), f"seed={number}", **{metric: value})
        edit(tmp_path / str(number) / "config.yaml", optimized_metric=metric, callbacks=callbacks)
    update(tmp_path)
    assert column(tmp_path, "job") == (["0", "2", "1"] if lowest_first else ["1", "2", "0"])


def test_equal_scores_share_a_rank(tmp_path):
    for number, loss in enumerate((1.0, 1.0, 2.0)):
        write_job(tmp_path / str(number), f"seed={number}", loss=loss)
    update(tmp_path)
    assert column(tmp_path, "rank") == ["1", "1", "3"]


def test_runs_older_than_the_record_of_overrides_differ_by_their_configs(tmp_path):
    for number, (model, lr) in enumerate([("wobert", 1), ("bert", 2), ("bert", 3)]):
        job = tmp_path / str(number)
        write_job(job, f"model={model}", f"model.lr={lr}", f"seed={number}", loss=number)
        edit(job / "summary.json", overrides=...)
        # A name of its own in every run, files of its own, and what only one of them has.
        callbacks = {**BEST, "last": {"path": f"{job}/last.ckpt"}, "only": {number: 1}}
        edit(job / "config.yaml", logger={"wandb": {"id": number}}, callbacks=callbacks)
    update(tmp_path)
    header = list(rows(tmp_path)[0])
    assert header[3 : header.index("val/loss")] == ["model", "seed", "model.lr"]


# -------------------------------------------------------------------------------------- what cannot be helped


@pytest.mark.parametrize(
    "summary", ["", '{"status": "fin', "[]", '{"status": "failed"}', '{"status": 1, "metrics": 2}']
)
def test_a_damaged_summary_is_a_row(tmp_path, summary):
    write_job(tmp_path / "0", "model.lr=1", loss=1.0)
    write_job(tmp_path / "1", "model.lr=2", loss=2.0)
    write_job(tmp_path / "2", "model.lr=3", loss=3.0)
    (tmp_path / "1" / "summary.json").write_text(summary)
    (tmp_path / "2" / "config.yaml").write_text("model: [")
    update(tmp_path)
    assert column(tmp_path, "job") == ["0", "2", "1"] and column(tmp_path, "status")[2] == "unreadable"
    assert column(tmp_path, "model.lr") == ["1", "3", "2"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "null", '"high"', "true"])
def test_what_is_no_finite_number_is_an_empty_cell(tmp_path, value):
    write_job(tmp_path / "0", "seed=1", loss=1.0, accuracy=0.5)
    write_job(tmp_path / "1", "seed=2", loss=2.0)
    path = tmp_path / "0" / "summary.json"
    path.write_text(path.read_text().replace('"val/loss": 1.0', f'"val/loss": {value}'))
    update(tmp_path)
    assert column(tmp_path, "val/loss") == ["2.0", ""] and column(tmp_path, "val/accuracy") == ["", "0.5"]
    assert column(tmp_path, "rank") == ["1", ""]


def test_nothing_that_goes_wrong_ends_a_sweep(tmp_path, monkeypatch, caplog):
    update(tmp_path / "nowhere")
    assert "nowhere" in caplog.text
    write_job(tmp_path / "0", loss=1.0)

    def broken(path, board):
        raise RuntimeError("no font")

    monkeypatch.setattr(leaderboard_plot, "plot_leaderboard", broken)
    with caplog.at_level(logging.WARNING):
        update(tmp_path)
    assert "no font" in caplog.text
    assert len(rows(tmp_path)) == 1 and (tmp_path / "leaderboard.md").is_file()
    assert not list(tmp_path.glob(".leaderboard-*"))


def test_no_job_no_leaderboard(tmp_path):
    (tmp_path / "0").mkdir()
    update(tmp_path)
    assert not list(tmp_path.glob("leaderboard.*"))


def test_files_are_replaced_whole_and_what_a_killed_writer_left_is_swept_away(tmp_path, monkeypatch):
    write_job(tmp_path / "0", loss=1.0)
    update(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    write_job(tmp_path / "1", loss=2.0)
    code = (
        "import os, sys; from launch import leaderboard, leaderboard_plot\n"
        "leaderboard_plot.plot_leaderboard = lambda path, board: (path.write_text('half'), os._exit(9))\n"
        "leaderboard.update(sys.argv[1])"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=REPOSITORY)
    assert killed.returncode == 9
    [left] = tmp_path.glob(".leaderboard-*")
    assert (left / "leaderboard.png").read_text() == "half"
    assert (tmp_path / "leaderboard.png").read_bytes() == before["leaderboard.png"]
    update(tmp_path)
    assert not left.exists()
    assert all((tmp_path / name).read_bytes() != before[name] for name in FILES)
    assert len(rows(tmp_path)) == 2


def _finish_jobs(directory, numbers):
    for number in numbers:
        write_job(directory / str(number), f"seed={number}", loss=float(number))
        update(directory)
        rows(directory), imread(directory / "leaderboard.png")  # whole whenever somebody looks


def test_two_processes_at_once_leave_the_jobs_of_both(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_finish_jobs, args=(tmp_path, range(start, 6, 2))) for start in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert column(tmp_path, "job") == [str(number) for number in range(6)]
    assert not list(tmp_path.glob(".leaderboard-*"))


def test_a_system_without_locks_has_leaderboards_too(tmp_path, monkeypatch):
    write_job(tmp_path / "0", loss=1.0)
    monkeypatch.setattr(leaderboard, "fcntl", None)
    update(tmp_path)
    assert {path.name for path in tmp_path.glob("lead*")} == FILES


def test_reading_needs_neither_torch_nor_matplotlib():
    code = "import sys, launch.leaderboard; print({'torch', 'matplotlib'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=REPOSITORY, text=True).strip() == "set()"


# ------------------------------------------------------------------------------------------------ any runs


def test_collects_runs_sweeps_and_directories_of_runs_each_job_once(tmp_path):
    for name in ("sweep/10", "sweep/9", "runs/one", "runs/other"):
        write_job(tmp_path / name, loss=1.0)
    assert [path.name for path in job_directories(tmp_path / "sweep")] == ["9", "10"]
    assert [job.name for job in collect([tmp_path / "sweep", tmp_path / "runs/one"])] == [
        "sweep/9", "sweep/10", "runs/one",
    ]  # fmt: skip
    assert [job.name for job in collect(str(tmp_path / "sweep"))] == ["9", "10"]
    both = collect([tmp_path / "runs", os.path.relpath(tmp_path / "runs" / "one")])
    assert sorted(job.name for job in both) == ["one", "other"]
    for missing, line in ((tmp_path / "nix", "there is no such directory"), (tmp_path, "no run lies here")):
        with pytest.raises(ValueError, match=f"runs={missing}: {line}"):
            collect([tmp_path / "runs", missing])


def test_another_metric_ranks_where_it_is_asked_for(tmp_path):
    write_job(tmp_path / "0", "seed=1", loss=1.0, accuracy=0.1)
    write_job(tmp_path / "1", "seed=2", loss=2.0, accuracy=0.2)
    text = write(collect([tmp_path]), tmp_path, "val/accuracy")
    assert text == (tmp_path / "leaderboard.md").read_text()
    assert text.startswith("# val/accuracy, higher is better")
    assert column(tmp_path, "job") == ["1", "0"]


# ---------------------------------------------------------------------------------------------- the picture


def test_a_number_is_an_axis_with_the_failed_jobs_at_its_foot(tmp_path, figures):
    for number, lr in enumerate((0.0001, 0.001, 0.01, 0.1)):
        for seed in (1, 2):
            status = "failed" if lr == 0.1 else "finished"
            loss = None if lr == 0.1 else 2 + lr + seed / 10
            name = str(2 * number + seed)
            write_job(tmp_path / name, f"model.lr={lr}", f"seed={seed}", status=status, loss=loss)
    update(tmp_path)
    [axes] = figures[0].axes
    assert axes.get_xscale() == "log" and axes.get_yscale() == "linear"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("model.lr", "val/loss")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0001", "0.001", "0.01", "0.1"]
    assert legend(axes) == ["failed"] and len(axes.containers) == 3  # error bars
    [failed] = [line for line in axes.lines if line.get_label() == "failed"]
    assert list(failed.get_xdata()) == [0.1, 0.1]
    assert "sample standard deviation" in axes.get_title(loc="left")


def test_a_curve_for_each_value_of_one_other_option(tmp_path, figures):
    for number, (model, lr) in enumerate([(m, lr) for m in ("wobert", "bert") for lr in (1, 2, 4)]):
        status = "running" if number == 5 else "finished"
        loss = None if number == 5 else 2.0 + number
        write_job(tmp_path / str(number), f"model={model}", f"model.lr={lr}", status=status, loss=loss)
    update(tmp_path)
    [axes] = figures[0].axes
    assert axes.get_xscale() == "linear" and legend(axes) == ["model=wobert", "model=bert", "running"]


def test_other_options_are_lines_the_best_first(tmp_path, figures):
    for number, (model, seed) in enumerate([(m, seed) for m in ("bert", "wobert") for seed in (1, 2)]):
        status, loss = ("failed", None) if number == 1 else ("finished", 2.0 - number / 10)
        write_job(tmp_path / str(number), f"model={model}", f"seed={seed}", status=status, loss=loss)
    write_job(tmp_path / "4", "model=$x$", status="running", loss=None)
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "summary.json").write_text("")
    update(tmp_path)
    [axes] = figures[0].axes
    assert ticks(axes) == ["model=wobert", "model=bert", "model=$x$", "job 5"]
    assert notes(axes) == ["1.7500 ± 0.0707", "2.0000, 1 of 2 failed", "running", "unreadable"]
    assert len(axes.containers) == 1


@pytest.mark.parametrize(("count", "label"), [(1, "job 0"), (3, "3 jobs")])
def test_where_nothing_but_seeds_varies_there_is_one_line(tmp_path, figures, count, label):
    for number in range(count):
        write_job(tmp_path / str(number), f"seed={number}", loss=2.0 + number)
    update(tmp_path)
    assert ticks(figures[0].axes[0]) == [label]


def test_all_failed(tmp_path, figures):
    for number in range(3):
        write_job(tmp_path / str(number), f"model.lr={number}", status="failed", error="E", loss=None)
    update(tmp_path)
    assert notes(figures[0].axes[0]) == ["failed"] * 3
    assert tables(tmp_path)[0][0][0] == "job"  # nobody has a rank


def test_a_diverged_job_leaves_room_for_the_others(tmp_path, figures):
    for number, loss in enumerate((2.0, 2.1, 1e6)):
        write_job(tmp_path / str(number), f"model={number}", loss=loss)
    update(tmp_path)
    assert figures[0].axes[0].get_xscale() == "log"


def test_many_jobs_stay_legible(tmp_path, figures):
    for number in range(90):
        write_job(tmp_path / str(number), f"model=m{number}", "model.name=" + "x" * 80, loss=number)
    edit(tmp_path / "0" / "config.yaml", model={"name": "y"})
    update(tmp_path)
    [axes] = figures[0].axes
    assert len(ticks(axes)) == leaderboard_plot.DRAWN_SETTINGS
    assert axes.get_xlabel() == "val/loss (10 settings more in leaderboard.csv)"
    assert max(map(len, ticks(axes))) == leaderboard_plot.LABEL_CHARACTERS
    height = figures[0].get_size_inches()[1] * 72 / len(ticks(axes))
    assert height > 1.5 * axes.get_yticklabels()[0].get_fontsize()  # points a line
    assert len(rows(tmp_path)) == 90


def test_chinese_is_drawn_with_a_font_that_has_it_and_as_code_points_elsewhere(
    tmp_path, figures, monkeypatch
):
    for number, note in enumerate(("体育", "plain")):
        write_job(tmp_path / str(number), f"model.note={note}", loss=2.0 + number)
    monkeypatch.setattr(leaderboard_plot, "cjk_font", lambda: None)
    update(tmp_path)
    assert ticks(figures[0].axes[0]) == [r"note=\u4f53\u80b2", "note=plain"]
    assert figures[0].get_supxlabel() == leaderboard_plot.FONT_HINT
