"""The static check of a claim: its yaml, what was typed beside it, and all jobs of all its steps, before the first
one starts."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from launch.check import check_command_line
from launch.claims import PLACEHOLDER, RESERVED, Claim, Step, Typed, key_of, parsed, plan
from launch.explain import Groups, explain_grammar
from launch.signatures import Function, TargetError, describe, did_you_mean, locate, misfit, show

# The node `claim`, in the language of annotations.
CLAIM = {
    "statement": "str",
    "article": "str",
    "criterion": "str",
    "thresholds": "dict",
    "minutes": "Annotated[float, 'x > 0']",
    "scale": "Literal['quick', 'full']",
    "report": "str",
    "asks": "dict",
    "steps": "dict",
}
STEP = {"overrides": "list[str]", "full": "list[str]", "for_each": "str"}
OPTIONAL = ("thresholds", "asks", "full", "for_each")


def find_mistakes(loader: ConfigLoader, config: DictConfig, told: list[str]) -> list[str]:
    """All mistakes of a claim: of its yaml, of what was typed beside it, and of every job of every step.

    Args:
        config: the composed config, Hydra's own node included; its node `claim` is a mapping.
        told: the mistakes of the config itself, which all jobs would make again; they are given back.
    """
    lines = _misfits(OmegaConf.to_container(config.claim, resolve=False))
    if lines:
        return told + lines
    claim, typed = Claim.of(config, config.hydra.runtime.choices), Typed.of(config.hydra)
    asked = [name for name in claim.asks if name not in map(key_of, typed.options)]
    if asked:
        told = [line for line in told if not line.startswith(tuple(f"{name}:" for name in asked))]
    lines = [f"{name}: experiment={claim.experiment} needs it: {claim.asks[name]}" for name in asked]
    groups = Groups(loader, config.hydra.job.config_name, [])
    lines += _mistakes_of_report(claim) + _mistakes_of_steps(claim, groups) + _fixed(claim, typed)
    if lines:
        return told + lines
    steps = {step.name: step for step in claim.steps}
    for name, sweeps in plan(claim, Path("runs"), loader, sample=True).items():
        # The runs are not there yet.
        of_run = tuple(f"{key_of(override)}{end}" for override in steps[name].of_run for end in "=:")
        for sweep in sweeps:
            overrides = typed.of_job([_of_one_seed(override) for override in sweep.arguments])
            found = check_command_line(loader, config.hydra.job.config_name, overrides, multirun=True)
            lines += [f"step {name}: {line}" for line in found if not line.startswith((*of_run, *told))]
    return told + list(dict.fromkeys(lines))


def _of_one_seed(override: str) -> str:
    """`seed=1` for `seed=1,2,3`, whose jobs make the same mistakes: a check of one of them is enough."""
    return override.partition(",")[0] if re.fullmatch(r"seed=\d+(,\d+)+", override) else override


def _misfits(node: dict[str, Any]) -> list[str]:
    """What is wrong with the form of the claim's node."""
    lines = _misfits_of(node, CLAIM, "claim")
    steps = node.get("steps")
    if isinstance(steps, dict):
        lines += ["claim.steps: is empty; it names at least one step"] if not steps else []
        for name, step in steps.items():
            path = f"claim.steps.{name}"
            if not isinstance(step, dict):
                lines.append(f"{path}: must be a mapping with the key overrides")
            elif not re.fullmatch(r"\w+", str(name)):
                lines.append(f"{path}: a step's name is that of its directory: letters, digits and _")
            else:
                lines += _misfits_of(step, STEP, path)
                lines += _given_twice(step, path)
    return lines


def _given_twice(step: dict[str, Any], path: str) -> list[str]:
    lines = []
    for name in ("overrides", "full"):
        overrides = step.get(name)
        typed = Counter(map(key_of, overrides or [])) if misfit(overrides or [], STEP[name]) is None else {}
        lines += [f"{path}.{name}: {key} is given twice" for key, count in typed.items() if count > 1]
    return lines


def _misfits_of(node: dict[str, Any], annotations: dict[str, str], path: str) -> list[str]:
    lines = [
        f"{path}.{key}: no such option{did_you_mean(str(key), annotations)}"
        for key in node
        if key not in annotations
    ]
    for key, annotation in annotations.items():
        if key not in node:
            lines += [] if key in OPTIONAL else [f"{path}.{key}: is missing; it must be given"]
        elif (failure := misfit(node[key], annotation)) is not None:
            lines.append(f"{path}.{key}={show(node[key])}: {describe(failure, key, node[key])}")
    return lines


def _mistakes_of_report(claim: Claim) -> list[str]:
    try:
        found = locate(claim.report)
    except TargetError as error:
        return [f"claim.report={claim.report}: {error}"]
    if found is not None and not isinstance(found.node, Function):
        return [f"claim.report={claim.report}: must be a function (steps, thresholds) -> Report"]
    return []


def _mistakes_of_steps(claim: Claim, groups: Groups) -> list[str]:
    lines = []
    names = [step.name for step in claim.steps]
    earlier: dict[str, Step] = {}
    for step in claim.steps:
        path = f"claim.steps.{step.name}"
        if not step.overrides:
            lines.append(f"{path}.overrides: is empty; name what its jobs are")
        for override in step.overrides:
            try:
                [one] = parsed(
                    [PLACEHOLDER.sub(lambda found: "x" if found[1] in names else found[0], override)]
                )
                if one.is_sweep_override() and not one.is_discrete_sweep():
                    lines.append(f"{path}: {override}: a claim has a fixed grid; type its values, a,b")
            except HydraException:
                lines.append(f"{path}: {explain_grammar(override, groups)}")
            if key_of(override) in RESERVED or override == "ckpt_path=last":
                lines.append(f"{path}: {override}: is typed by the claim itself")
        if step.for_each is not None and step.for_each not in earlier:
            there = f" (there are: {', '.join(earlier)})" if earlier else ""
            lines.append(f"{path}.for_each={step.for_each}: no step before it has that name{there}")
        else:
            named = [found for override in step.overrides for found in PLACEHOLDER.findall(override)]
            others = dict.fromkeys(name for name, _ in named if name in names and name != step.for_each)
            lines += [f"{path}: {{{name}}}: is known in a step with for_each: {name}" for name in others]
        if step.for_each in earlier:
            lines += _mistakes_of_for_each(step, earlier[step.for_each], path)
        earlier[step.name] = step
    return lines


def _mistakes_of_for_each(step: Step, earlier: Step, path: str) -> list[str]:
    lines = []
    if len(step.of_run) != 1:
        lines.append(
            f"{path}: one option names the run, ckpt_path={{{earlier.name}}} or model.init_from={{{earlier.name}}}; "
            "others can refer to that option: ${ckpt_path}"
        )
    typed = list(map(key_of, earlier.overrides))
    for name, option in (found for override in step.overrides for found in PLACEHOLDER.findall(override)):
        if name == earlier.name and option and option not in typed:
            there = f" (there are: {', '.join(typed)})"
            lines.append(f"{path}: {{{name}:{option}}}: step {name} types no such option{there}")
    return lines


def _fixed(claim: Claim, typed: Typed) -> list[str]:
    """What was typed beside the claim and is no longer free."""
    lines = [
        f"{override}: is fixed by experiment={claim.experiment}, whose criterion was written before the runs"
        for override in typed.task
        if key_of(override).startswith("claim.") and key_of(override) != "claim.scale"
    ]
    lines += [
        f"{override}: a claim types its sweeps itself; leave it out"
        for override in typed.hydra
        if key_of(override).startswith(("hydra/sweeper", "hydra.sweeper", "hydra.sweep."))
    ]
    for override in typed.options:
        steps = [step for step in claim.steps for own in step.overrides if key_of(own) == key_of(override)]
        if steps:
            names = ", ".join(dict.fromkeys(step.name for step in steps))
            lines.append(
                f"{override}: is fixed by experiment={claim.experiment} (step {names}); leave it out"
            )
        elif key_of(override) in ("stage", "ckpt_path"):
            lines.append(f"{override}: is no option of a claim, which goes on by itself; leave it out")
    return lines
