"""Hydra's composition errors in the user's words: one line a mistake, all mistakes of a command line at once.

Hydra stops at the first override that it cannot apply and often advises `+`, which composes an option that
nothing reads. `compose` leaves such overrides out, one after the other, and explains each against the config
that the rest composes.
"""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import ConfigDefault, GroupDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigIndexError, OmegaConfBaseException

from launch.signatures import did_you_mean

# What composition raises; ValueError: `model=3`, a group's option that is no text.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValueError)

# Choices of Hydra's own groups that come with an extra of this project.
EXTRAS = {"hydra/sweeper/optuna": "sweep", "hydra/launcher/joblib": "sweep"}
# Groups without which there is no run.
NEEDED = ("model", "data", "trainer")


def config_loader(conf: Path, config_dir: str | None = None) -> ConfigLoader:
    """Hydra's loader over the project's configs and those of `--config-dir`."""
    search_path = create_config_search_path(str(conf))
    if config_dir is not None:
        anchor = SearchPathQuery(provider="schema")
        search_path.prepend(
            provider="command-line", path=f"file://{Path(config_dir).absolute()}", anchor=anchor
        )
    return ConfigLoaderImpl(config_search_path=search_path)


def typed_overrides(config: DictConfig, which: Literal["task", "hydra"] = "task") -> list[str]:
    """The overrides that a config was composed with, as typed: plain iteration would resolve `${...}` in them."""
    return OmegaConf.to_container(config.hydra.overrides[which], resolve=False)


def compose(
    loader: ConfigLoader, config_name: str, arguments: list[str], run_mode: RunMode = RunMode.RUN
) -> tuple[DictConfig | None, list[str]]:
    """The config of those overrides that Hydra can apply, and a line for each other one, in the order typed.

    The config is None where something else than an override is wrong (a yaml file); the lines then say what.
    """
    lines: dict[int, str] = {}
    overrides: dict[int, Override] = {}
    groups = Groups(loader, config_name, arguments)
    for index, argument, spaced in _joined(arguments):
        if spaced:
            lines[index] = f"{spaced}: type it without spaces: {argument}"
            continue
        try:
            overrides[index] = OverridesParser.create().parse_overrides([argument])[0]
        except HydraException:
            lines[index] = explain_grammar(argument, groups)
    for index, override in list(overrides.items()):
        line = _without_composing(override, groups, run_mode)
        if line is not None:
            lines[index] = line
            del overrides[index]
    _without_contradictions(overrides, lines)

    # As Hydra does it: first the choices of groups are composed, then the options are set.
    composed = {i: o for i, o in overrides.items() if groups.exists(o.key_or_group) or _is_search_path(o)}
    failed: dict[int, Exception] = {}
    while True:
        try:
            config = _load(loader, config_name, composed.values(), run_mode)
            break
        except COMPOSITION_ERRORS as error:
            index = _culprit(error, composed, lambda rest: _load(loader, config_name, rest, run_mode))
            if index is None:
                return None, [lines[i] for i in sorted(lines)] + [_plain(error)]
            failed[index] = error
            del composed[index]
    for index, override in overrides.items():
        if index in composed or index in failed or override.is_sweep_override():
            continue
        if _lies_below_a_value(override.key_or_group, config):  # OmegaConf would put a mapping in its place
            failed[index] = ConfigCompositionException(f"Could not override '{override.key_or_group}'.")
            continue
        try:
            ConfigLoaderImpl._apply_overrides_to_config([override], config)
        except COMPOSITION_ERRORS as error:
            failed[index] = error
    applied = [override for index, override in overrides.items() if index not in failed]
    config.hydra.overrides.task = [o.input_line for o in applied if not o.is_hydra_override()]
    config.hydra.overrides.hydra = [o.input_line for o in applied if o.is_hydra_override()]
    for index, error in failed.items():
        lines[index] = explain(overrides[index], error, config, groups)
    return config, [lines[index] for index in sorted(lines)]


def explain(override: Override, error: Exception, config: DictConfig, groups: Groups) -> str:
    """The line for an override that Hydra refuses with `error`; `config`: what the other overrides
    compose."""
    typed, key = override.input_line, override.key_or_group
    text = str(error)
    if isinstance(error, MissingConfigException):
        return _no_such_choice(override, error, groups)
    if override.is_delete() and groups.exists(key):
        return f"{typed}: cannot be removed; to choose none type {key}=[]"
    if override.is_delete():
        return f"{typed}: there is no {key} to remove" + _place_of(key, config, groups)
    if "An item is already at" in text:
        return f"{typed}: {key} is there already; type {typed.lstrip('+')}"
    if "appears more than once" in text or "Multiple values" in text:
        return f"{typed}: these cannot be chosen together"
    if "Could not override" in text and groups.exists(key) and "/" not in key:
        return f"{typed}: cannot be chosen here; type {key}=NAME"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if (
        "Could not override" in text
        or "looks like a config group" in text
        or isinstance(cause, ConfigIndexError)
    ):
        return no_such_option(key, config, groups, typed)
    return f"{typed}: {str(cause).splitlines()[0]}"


def no_such_option(key: str, config: DictConfig, groups: Groups, typed: str = "") -> str:
    """The line for a key that leads nowhere: the closest option or group, or what there is instead."""
    value = typed.partition("=")[2]
    if "/" in key:
        return _no_such_group(key, value, config, groups)
    parent, _, name = key.rpartition(".")
    while parent and not _exists(config, parent):
        parent, _, name = parent.rpartition(".")
    node = _value(config, parent) if parent else config
    source = _interpolation(config, parent) if parent else None
    if source is not None:
        return f"{key}: {parent} is taken from {source}; type {source}.{name}={value}"
    if parent and not OmegaConf.is_config(node):
        return f"{key}: {parent} is a value, it has no options"
    if OmegaConf.is_list(node):
        return f"{key}: the list {parent} has {len(node)} items, counted from 0"
    names = [str(k) for k in node if k not in ("hydra", "_target_")]
    if key == f"{parent}.{name}" and parent:
        hint = did_you_mean(name, names)
        place = hint or _place_of(key, config, groups, value)
        return f"{key}: no such option" + (place or f" (there are: {', '.join(names)})")
    place = _place_of(key, config, groups, value) or did_you_mean(name, names + groups.top())
    return f"{key}: no such option" + place


def _no_such_group(key: str, value: str, config: DictConfig, groups: Groups) -> str:
    dotted = key.replace("/", ".")
    if _exists(config, dotted) and not groups.exists(key):
        return f"{key}: no such group; the option is {dotted}={value}"
    top, _, group = key.partition("/")
    choice = OmegaConf.select(config, f"hydra.runtime.choices.{top}")
    if choice is None:
        return f"{key}: no such group" + did_you_mean(top, groups.top())
    present = chosen_groups(top, config)
    hint = did_you_mean(group, present)
    having = [f"{top}={name}" for name in groups.options(top) if group in groups.subgroups(top, name)]
    if having:
        hint = f"; these have it: {', '.join(having)}"
    there = f" (its groups: {', '.join(present)})" if present else ""
    return f"{top}={choice} has no group {group}{hint or there}"


def chosen_groups(top: str, config: DictConfig) -> list[str]:
    """The sub-groups that the choice of `top` has: `backbone`, `optimizer`, ... for `model`."""
    choices = OmegaConf.to_container(config.hydra.runtime.choices)
    return sorted(str(name).partition("/")[2] for name in choices if str(name).startswith(f"{top}/"))


def _place_of(key: str, config: DictConfig, groups: Groups, value: str = "") -> str:
    """`; did you mean model.optimizer.lr?` where an option or a group of that name lies elsewhere."""
    matching = [group for group in groups.all() if group.endswith(f"/{key}")]
    if matching:
        return f"; did you mean {matching[0]}={value}?"
    paths = [path for path in _paths(config) if path.endswith(f".{key}") and not path.startswith("hydra.")]
    return f"; did you mean {' or '.join(sorted(paths)[:2])}?" if paths else ""


def _paths(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in node:
        path = f"{prefix}{name}"
        yield path
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not (
            child._is_none() or child._is_interpolation() or child._is_missing()
        ):
            yield from _paths(child, f"{path}.")


def _exists(config: DictConfig, path: str) -> bool:
    try:
        parent, _, name = path.rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        return isinstance(node, DictConfig) and name in node.keys()
    except OmegaConfBaseException:
        return False


def _lies_below_a_value(key: str, config: DictConfig) -> bool:
    """Whether a parent of `key` is no mapping or list of its own, but a value or an interpolation."""
    parents = [key[: dot.start()] for dot in re.finditer(r"\.", key)]
    return any(
        _exists(config, parent)
        and (_interpolation(config, parent) or not OmegaConf.is_config(_value(config, parent)))
        for parent in parents
    )


def _interpolation(config: DictConfig, path: str) -> str | None:
    """`tokenizer` where the option at `path` is `${tokenizer}`."""
    parent, _, name = path.rpartition(".")
    holder = _value(config, parent) if parent else config
    if not isinstance(holder, DictConfig) or not OmegaConf.is_interpolation(holder, name):
        return None
    return str(holder._get_node(name)._value()).strip("${}")


def _value(config: DictConfig, path: str) -> object:
    try:
        return OmegaConf.select(config, path)
    except OmegaConfBaseException:  # an interpolation that resolves in a run only
        return None


def _no_such_choice(override: Override, error: MissingConfigException, groups: Groups) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    extra = EXTRAS.get(f"{group}/{option}")
    if extra is not None:
        return f'{override.input_line}: is not installed; pip install -e ".[{extra}]"'
    options = groups.options(group)
    there = f" (there are: {', '.join(options)})" if options else " (there are none yet)"
    return f"{override.input_line}: there is no {group}/{option}{did_you_mean(option, options)}{there}"


def _needs_multirun(override: Override, groups: Groups) -> str:
    typed, value = override.input_line, override.input_line.partition("=")[2]
    key = override.get_key_element()
    if groups.exists(key):
        choices = shlex.quote(f"{key}=[{value}]")
        return f"{typed}: a list of choices is typed {choices}; a sweep over them needs -m"
    if "," not in value or "(" in value:
        return f"{typed}: a sweep needs -m: python train.py -m ... {shlex.quote(typed)}"
    items, text = shlex.quote(f"{key}=[{value}]"), shlex.quote(f'{key}="{value}"')
    return f"{typed}: several values are a sweep, which needs -m; a list is typed {items}, a text {text}"


def _without_composing(override: Override, groups: Groups, run_mode: RunMode) -> str | None:
    """Mistakes that Hydra lets through or tells without the override's name."""
    typed, key = override.input_line, override.key_or_group
    group = groups.exists(key) and not override.is_hydra_override()
    options = ", ".join(groups.options(key)) if group else ""
    if not key:
        return f"{typed}: the name before = is missing"
    if re.fullmatch(r"[^=]*=", typed) and not override.is_delete():
        return f"{typed}: has no value" + (
            f" (there are: {options})" if group else '; null is none, "" an empty text'
        )
    if override.is_sweep_override():
        return None if run_mode == RunMode.MULTIRUN else _needs_multirun(override, groups)
    if override.is_delete():
        return None
    if group and override.is_force_add():
        return f"{typed}: a group is chosen without ++: {typed.lstrip('+')}"
    if group and not isinstance(override.value(), (str, list, dict)):
        unset = f"; to choose none type ~{key}" if override.value() is None and key not in NEEDED else ""
        return f"{typed}: must be the name of a choice{unset} (there are: {options})"
    return None


def _without_contradictions(overrides: dict[int, Override], lines: dict[int, str]) -> None:
    """Hydra silently takes the last of two values; here both are told."""
    seen: dict[str, int] = {}
    for index, override in list(overrides.items()):
        key = override.get_key_element()
        first = overrides.get(seen.setdefault(key, index))
        if first is not None and first.input_line != override.input_line and not override.is_hydra_override():
            lines[index] = f"{key}: given twice: {first.input_line} and {override.input_line}"
            del overrides[index]


# ------------------------------------------------------------------------------------------------ the grammar


def _joined(arguments: list[str]) -> Iterator[tuple[int, str, str | None]]:
    """(index, argument, None), or (index, 'data=clue', 'data = clue') where the shell cut one in pieces."""
    index = 0
    while index < len(arguments):
        pieces = arguments[index : index + 1]
        rest = arguments[index + 1 : index + 3]
        if "=" not in pieces[0] and rest[:1] == ["="]:
            pieces += rest
        elif "=" not in pieces[0] and rest and rest[0].startswith("="):
            pieces += rest[:1]
        elif pieces[0].endswith("=") and rest and "=" not in rest[0]:
            pieces += rest[:1]
        yield index, "".join(pieces), " ".join(pieces) if len(pieces) > 1 else None
        index += len(pieces)


def explain_grammar(argument: str, groups: Groups) -> str:
    """The line for an argument that is no override, with the form to type."""
    key, equals, value = argument.partition("=")
    if not equals:
        choices = [f"{group}={argument}" for group in groups.all() if argument in groups.options(group)]
        return f"{argument}: is no option=value; " + (
            f"did you mean {choices[0]}?"
            if choices
            else "type " + "=".join((argument.split() + ["VALUE"])[:2])
        )
    if key != key.strip():
        return f"{argument}: type it without spaces: {key.strip()}={value.strip()}"
    if not re.fullmatch(r"(\+{0,2}|~)[\w./@:$-]+", key):
        indexed = re.sub(r"\[(\d+)\]", r".\1", key)
        hint = f"; an item of a list is {indexed}={value}" if indexed != key else ""
        return f"{argument}: the name before = is not one{hint}"
    if "/" in key and "." in key:
        return f"{argument}: an option is {key.replace('/', '.')}={value}, with dots; only a choice has /"
    what = (
        _unclosed(value) or "a text with spaces, quotes, brackets or letters that are not ASCII needs quotes"
    )
    form = _quoted(key, value)
    return f"{argument}: {what}" + (f"; type {form}" if form else "")


def _unclosed(value: str) -> str | None:
    stack, pairs = [], {")": "(", "]": "[", "}": "{"}
    quote = None
    for letter in value:
        if quote:
            quote = None if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in pairs.values():
            stack.append(letter)
        elif letter in pairs and (not stack or stack.pop() != pairs[letter]):
            return f"{letter} closes nothing"
    unclosed = quote or (stack[-1] if stack else None)
    return f"{unclosed} is not closed" if unclosed else None


def _quoted(key: str, value: str) -> str | None:
    """The shell word that gives `value` as a list of texts or as one text; None where no form parses."""
    candidates = [f'{key}="{_escaped(value)}"']
    if value.startswith("["):
        items = (item.strip() for item in _items(value[1:].removesuffix("]")))
        candidates.insert(0, f"{key}=[" + ",".join(_item(item) for item in items) + "]")
    for candidate in candidates:
        if _parses(candidate):
            return shlex.quote(candidate)
    return None


def _item(item: str) -> str:
    return item if _parses(f"x={item}") else f'"{_escaped(item)}"'


def _escaped(text: str) -> str:
    return text.strip("\"'").replace('"', '\\"')


def _items(text: str) -> Iterator[str]:
    """Cut at the commas that lie outside of brackets."""
    depth, item = 0, ""
    for letter in text:
        depth += (letter in "[({") - (letter in "])}")
        if letter == "," and depth <= 0:
            yield item
            item = ""
        else:
            item += letter
    yield item


def _parses(argument: str) -> bool:
    try:
        OverridesParser.create().parse_overrides([argument])
    except HydraException:
        return False
    return True


# ---------------------------------------------------------------------------------------------- Hydra's parts


class Groups:
    """The groups of the search path and their options."""

    def __init__(self, loader: ConfigLoader, config_name: str, arguments: Iterable[str]):
        search_path = [a for a in arguments if a.lstrip("+").startswith("hydra.searchpath=") and _parses(a)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._repository = loader._parse_overrides_and_create_caching_repo(config_name, search_path)[1]

    def exists(self, group: str) -> bool:
        return self._repository.group_exists(group)

    def options(self, group: str) -> list[str]:
        return self._repository.get_group_options(group, ObjectType.CONFIG) if self.exists(group) else []

    def top(self) -> list[str]:
        return [name for name in self._repository.get_group_options("", ObjectType.GROUP) if name != "hydra"]

    def all(self, parent: str = "") -> list[str]:
        """Every group, such as `model` and `model/backbone`."""
        children = self._repository.get_group_options(parent, ObjectType.GROUP) if parent else self.top()
        names = [f"{parent}/{child}" if parent else child for child in children]
        return [name for group in names for name in (group, *self.all(group))]

    def subgroups(self, group: str, option: str) -> set[str]:
        """The groups that the defaults list of `group/option` chooses from, those of its own defaults
        included."""
        result = self._repository.load_config(f"{group}/{option}")
        names: set[str] = set()
        for default in (result.defaults_list if result else None) or []:
            if (
                isinstance(default, GroupDefault)
                and not default.override
                and not default.group.startswith("/")
            ):
                names.add(default.group)
            elif isinstance(default, ConfigDefault) and default.path not in (None, "_self_"):
                names |= self.subgroups(group, default.path)
        return names


def _load(
    loader: ConfigLoader, config_name: str, overrides: Iterable[Override], run_mode: RunMode
) -> DictConfig:
    typed = [override.input_line for override in overrides]
    with warnings.catch_warnings():  # a search path that is not there: told by launch.check
        warnings.simplefilter("ignore")
        return loader.load_configuration(config_name, typed, run_mode=run_mode)


def _is_search_path(override: Override) -> bool:
    return override.key_or_group == "hydra.searchpath"


def _culprit(error: Exception, overrides: dict[int, Override], load: Callable) -> int | None:
    """The choice that `error` is about: that of the missing file, else the first that does not compose."""
    group, _, option = str(getattr(error, "missing_cfg_file", "")).rpartition("/")
    for index, override in overrides.items():
        if option and override.key_or_group == group and option in override.input_line:
            return index
    tried: list[Override] = []
    for index in [None, *sorted(overrides, key=lambda i: overrides[i].key_or_group.count("/"))]:
        tried += [overrides[index]] if index is not None else []
        try:
            load(tried)
        except COMPOSITION_ERRORS:
            return index
    return None


def _plain(error: Exception) -> str:
    """Hydra's words for what is wrong in a yaml file, without its list of search paths."""
    text = str(error) or str(error.__cause__)
    lines = [line.strip() for line in text.partition("Config search path:")[0].splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("To append to your"))
