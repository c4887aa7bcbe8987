"""How fast a corpus of dialogues goes into the token cache, in how much memory, and how long an epoch's plan takes.

    python benchmarks/corpora.py --dialogues 1000000 --num-proc 1 2     # LCCC's forms: dialogues a second, peak memory
    python benchmarks/corpora.py --plan 10000000                        # a plan over so many rows

Dialogues are generated: 2 to 5 turns of 2 to 12 words, about as long as LCCC's, drawn from the most frequent words of
jieba's dictionary by their frequency there.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# LCCC's published files: the large and base's training file, base's validation file, the hub's.
FORMS = ("words in one array", "characters in one array", "words, a line each, gzip")
WORDS = 60_000
MEGABYTE = 1 << 20


def generated(count: int, seed: int = 0) -> Iterator[list[list[str]]]:
    """`count` dialogues, each a list of turns, each a list of words."""
    import jieba

    random = np.random.Generator(np.random.PCG64(seed))
    with jieba.get_dict_file() as file:
        entries = [line.decode("utf-8").split(" ")[:2] for line in file]
    entries = sorted(entries, key=lambda entry: -int(entry[1]))[:WORDS]
    words = np.array([word for word, _ in entries], dtype=object)
    chances = np.array([float(frequency) for _, frequency in entries])
    chances /= chances.sum()
    for start in range(0, count, 10_000):
        turns = random.integers(2, 6, size=min(10_000, count - start))
        lengths = random.integers(2, 13, size=turns.sum())
        drawn = words[random.choice(len(words), size=lengths.sum(), p=chances)].tolist()
        turn_ends = np.cumsum(lengths).tolist()
        all_turns = [
            drawn[end - length : end] for end, length in zip(turn_ends, lengths.tolist(), strict=True)
        ]
        ends = np.cumsum(turns).tolist()
        yield [all_turns[end - size : end] for end, size in zip(ends, turns.tolist(), strict=True)]


def write(path: Path, form: str, count: int) -> None:
    """A file of `count` dialogues in one of `FORMS`."""
    spaced = " ".join if form.startswith("words") else lambda words: " ".join("".join(words))
    lines = (
        json.dumps([spaced(turn) for turn in dialogue], ensure_ascii=False)
        for block in generated(count)
        for dialogue in block
    )
    if form.endswith("gzip"):
        with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
            file.writelines(line + "\n" for line in lines)
    else:
        with open(path, "w", encoding="utf-8") as file:
            file.write("[\n" + next(lines))
            file.writelines(",\n" + line for line in lines)
            file.write("\n]\n")


def prepare(path: str, num_proc: int, results: multiprocessing.Queue) -> None:
    """In a process of its own, so that its peak memory is that of this work: vocabulary, then token cache."""
    from datamodules.lccc import LCCC

    logging.disable()
    with tempfile.TemporaryDirectory() as cache:
        tokenizer = {"_target_": "datamodules.tokenizers.word.WordTokenizer"}
        corpus = LCCC(train=path, tokenizer=tokenizer, num_proc=num_proc, cache_dir=cache)
        start = time.perf_counter()
        corpus.prepare_tokenizer()
        vocabulary = time.perf_counter() - start
        start = time.perf_counter()
        corpus.prepare_data()
        tokens = time.perf_counter() - start
        corpus.setup()
        facts = corpus.stores["train"].facts
    results.put((vocabulary, tokens, facts["num_rows"]))


def resident(pid: int) -> int:
    """Bytes of memory that a process and its children hold now (Linux)."""
    total = 0
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended meanwhile
        return 0
    for line in status.splitlines():
        if line.startswith("VmRSS"):
            total = int(line.split()[1]) * 1024
    return total + sum(map(resident, map(int, children)))


def measure(dialogues: int, processes: list[int], rounds: int) -> None:
    context = multiprocessing.get_context("spawn")
    print(
        "form | file MB | processes | vocabulary s | tokens s | dialogues/s (tokens) | dialogues/s (both) | peak MB"
    )
    for form in FORMS:
        ending = ".jsonl.gz" if form.endswith("gzip") else ".json"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"dialogues{ending}"
            write(path, form, dialogues)
            for num_proc in processes:
                measured = []
                for _ in range(rounds):
                    results = context.Queue()
                    process = context.Process(target=prepare, args=(str(path), num_proc, results))
                    process.start()
                    peak = 0
                    while process.is_alive():
                        peak = max(peak, resident(process.pid))
                        time.sleep(0.05)
                    measured.append((*results.get(), peak))
                vocabulary, tokens, _, peak = np.median(np.array(measured), axis=0)
                print(
                    f"{form} | {path.stat().st_size / MEGABYTE:,.0f} | {num_proc} | {vocabulary:.1f} | {tokens:.1f} | "
                    f"{dialogues / tokens:,.0f} | {dialogues / (vocabulary + tokens):,.0f} | {peak / MEGABYTE:,.0f}",
                    flush=True,
                )


def measure_plan(rows: int) -> None:
    from datamodules.plan import BatchPlan

    lengths = np.random.Generator(np.random.PCG64(0)).integers(5, 129, size=rows).astype(np.int32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    plan = BatchPlan(lengths, tokens_per_batch=65536, seed=0)
    plan.step(0, 0)
    first = time.perf_counter() - start
    start = time.perf_counter()
    fingerprint = plan.fingerprint
    named = time.perf_counter() - start
    start = time.perf_counter()
    plan.step(1, 0)
    second = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{rows:,} rows, {plan.num_steps:,} steps: first epoch {first:.2f} s, next {second:.2f} s, fingerprint "
        f"{fingerprint} {named:.2f} s, peak memory {peak / MEGABYTE:,.0f} MB ({before / MEGABYTE:,.0f} before)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dialogues", type=int, default=0, help="how many to generate")
    parser.add_argument("--num-proc", type=int, nargs="+", default=[1, 2], help="processes that tokenize")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each; medians are printed")
    parser.add_argument("--plan", type=int, default=0, help="rows of a plan")
    options = parser.parse_args()
    if not options.dialogues and not options.plan:
        parser.error("nothing to do: give --dialogues N or --plan N")
    if options.dialogues:
        measure(options.dialogues, options.num_proc, options.rounds)
    if options.plan:
        measure_plan(options.plan)


if __name__ == "__main__":
    main()
