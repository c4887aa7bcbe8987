"""What a sweeper may draw that chooses its jobs by itself (Optuna), for the check before the first trial.

The search space stands in `hydra.sweeper.params`, in a preset, and among what is typed:

    model.optimizer.lr=tag(log,interval(1e-4,1e-2))    between both, evenly in its logarithm
    model.mask_rate=choice(0.15,0.3)                   one of these; 0.15,0.3 is the same
    model.backbone.num_hidden_layers=range(2,6,2)      2, 4 or 6: unlike in a grid, the last one too
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from launch import explain, leaderboard
from launch.run_dir import shown
from launch.signatures import describe, misfit, show

# hydra.sweeper's options where it is Optuna's, in the language of annotations.
OPTUNA = {
    "direction": "Literal['minimize', 'maximize']",
    "n_trials": "Annotated[int, 'x >= 1']",
    "n_jobs": "Annotated[int, 'x >= 1']",
    "max_failure_rate": "Annotated[float, '0 <= x <= 1']",
}
# Words in the names of metrics for which the other direction makes no sense.
WORDS = {
    "minimize": leaderboard.LOWER_IS_BETTER,
    "maximize": frozenset({"accuracy", "f1", "precision", "recall", "auc", "bleu", "rouge"}),
}
SQLITE = "sqlite:///"


@dataclass
class SearchSpace:
    """The overrides of a sweep, as its sweeper passes them to the jobs.

    Attributes:
        fixed: `option=value`, the same in every job.
        ends: for each option that is searched its `option=value` at the ends: every value of a choice, both ends of
            an interval and of a range.
        mistakes: a line for each override that the sweeper would refuse or drop without a word.
    """

    fixed: list[str] = field(default_factory=list)
    ends: dict[str, list[str]] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, config: DictConfig) -> SearchSpace:
        """The search space in Hydra's config of a sweep: `hydra.sweeper.params`, over which what is typed wins."""
        space = cls()
        preset = space._parse(
            [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
        )
        typed = space._parse(explain.typed_overrides(config))
        chosen: dict[str, Override] = {}
        for override in [*preset, *typed]:
            key = override.get_key_element()
            earlier = chosen.get(key, override)
            is_fixed_by_hand = earlier in preset and earlier.is_sweep_override()
            # Where an option has a value the sweeper does not search it.
            if earlier.is_sweep_override() != override.is_sweep_override() and not is_fixed_by_hand:
                lines = f"{earlier.input_line} and {override.input_line}"
                space.mistakes.append(f"{key}: given twice: {lines}")
            chosen[key] = override
        for key, override in chosen.items():
            if override.is_sweep_override():
                space._add(key, override)
            else:
                space.fixed.append(f"{key}={override.get_value_element_as_str()}")
        return space

    def jobs(self) -> Iterator[tuple[str, list[str]]]:
        """(what is varied, all overrides): once every option at its first end, then one at each of its other ends."""
        first = {key: values[0] for key, values in self.ends.items()}
        yield " ".join(first.values()), [*first.values(), *self.fixed]
        for key, values in self.ends.items():
            for value in values[1:]:
                yield value, [*{**first, key: value}.values(), *self.fixed]

    def _parse(self, arguments: list[str]) -> list[Override]:
        overrides = []
        for argument in arguments:
            try:
                overrides += OverridesParser.create().parse_overrides([argument])
            except HydraException:  # typed ones are in order, or they would not have come so far
                form = "is neither a value nor a search such as interval(1e-4,1e-2)"
                self.mistakes.append(f"hydra.sweeper.params.{argument}: {form}")
        return overrides

    def _add(self, key: str, override: Override) -> None:
        try:
            self.ends[key] = [f"{key}={value}" for value in _ends(override)]
        except ValueError as error:
            self.mistakes.append(f"{override.input_line}: {error}")


def _ends(override: Override) -> list[object]:
    """Raises ValueError where there is nothing between the ends."""
    value = override.value()
    if isinstance(value, RangeSweep) and not value.shuffle:
        # Optuna counts the end in.
        steps = math.floor(round((value.stop - value.start) / value.step, 9))
        ends = [value.start, value.start + steps * value.step]
    elif isinstance(value, IntervalSweep):
        ends = [value.start, value.end]
        if "log" in value.tags and value.start <= 0:
            raise ValueError("a logarithm needs numbers above 0")
    elif isinstance(value, (ChoiceSweep, RangeSweep)):
        for item in override.sweep_iterator():
            if isinstance(item, str) and not _reads_back(item):
                way_out = "type the values with commas between them, without choice()"
                raise ValueError(f"choice() loses the quotes of {item}; {way_out}")
        return list(override.sweep_iterator(transformer=Transformer.encode))
    else:
        raise ValueError("cannot be searched; type its values: choice(...)")
    if ends[0] > ends[1]:
        raise ValueError("its end lies before its start")
    return ends


def _reads_back(text: str) -> bool:
    """Whether the grammar reads a text without quotes as what it is."""
    try:
        override = OverridesParser.create().parse_overrides([f"x={text}"])[0]
    except HydraException:
        return False
    return not override.is_sweep_override() and override.value() == text


def find_mistakes(config: DictConfig, space: SearchSpace) -> Iterator[str]:
    """A line for each mistake in the options of Optuna's sweeper; none for those of others."""
    sweeper = config.hydra.sweeper
    if not sweeper._target_.endswith(".OptunaSweeper"):
        return
    direction = getattr(sweeper.direction, "name", sweeper.direction)
    for name, annotation in OPTUNA.items():
        value = direction if name == "direction" else sweeper[name]
        failure = misfit(value, annotation)
        if failure is not None:
            yield f"hydra.sweeper.{name}={show(value)}: {describe(failure, name, value)}"
    if not space.ends and not space.mistakes and sweeper.custom_search_space is None:
        yield (
            "hydra.sweeper.params: there is nothing to search; "
            "type for example 'model.optimizer.lr=tag(log,interval(1e-4,1e-2))'"
        )
    words = set(re.split("[^a-z0-9]+", str(config.optimized_metric).lower()))
    for better, of_metrics in WORDS.items():
        if words & of_metrics and direction in WORDS and direction != better:
            yield (
                f"hydra.sweeper.direction={direction}: looks for the worst {config.optimized_metric}; "
                f"type hydra.sweeper.direction={better}"
            )
    if isinstance(sweeper.storage, str):
        yield from _storage(sweeper.storage, sweeper.study_name, config)


def _storage(storage: str, study_name: str | None, config: DictConfig) -> Iterator[str]:
    if study_name is None:
        yield "hydra.sweeper.study_name: a study that is stored needs a name, by which it is continued"
    if storage.startswith(SQLITE):
        folder = Path(storage.removeprefix(SQLITE)).parent
        if not folder.is_dir():
            yield f"hydra.sweeper.storage={storage}: there is no directory {folder}"
    try:
        sweep_dir = Path(config.hydra.sweep.dir)
    except OmegaConfBaseException:  # told where the jobs are checked
        return
    # Hydra counts jobs from 0 in every process, a study goes on with other values.
    if any(sweep_dir.glob("*/summary.json")):
        yield (
            f"hydra.sweep.dir={shown(sweep_dir)}: holds jobs; "
            "a study that is stored goes on in a new directory, so leave hydra.sweep.dir out"
        )
