"""conf/experiment/claims/weissi.yaml: rescaled layers, and generalisation beside L2 at the same tuning budget."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from datamodules.batch import VectorBatch
from launch.claims import Job, Report, grouped, spread
from launch.predict import load_for_prediction
from lightning_modules.pictures import BLUE, GREY, ORANGE, clean
from lightning_modules.regularizers.base import Penalty
from lightning_modules.regularizers.l2 import L2
from lightning_modules.regularizers.weissi import WEISSI

STRENGTHS = {"l2": "model.regularizer.l2.weight", "weissi": "model.regularizer.weissi.lambda1"}
NAMES = {"l2": "L2", "weissi": "WEISSI"}
FACTORS = (4.0, 0.5, 0.5)  # their product is 1
ROWS = 1000


@dataclass(frozen=True)
class Rescaled:
    """How much a network's outputs and the values of penalties change when its layers are rescaled, relatively."""

    outputs: float
    weissi: float
    l2: float


def report(steps: dict[str, list[Job]], thresholds: dict[str, Any]) -> Report:
    """Met if rescaling changes outputs and WEISSI by at most `thresholds["difference"]`, and L2 by more, and if WEISSI's
    test accuracy minus that of L2, both at the strengths that validation chooses, is at least `thresholds["gain"]`."""
    exact = rescale(steps["none"][0])
    by_strength = {name: _by_strength(steps[name], option) for name, option in STRENGTHS.items()}
    chosen = {
        name: max(levels, key=lambda s, levels=levels: _validation(levels[s]))
        for name, levels in by_strength.items()
    }
    accuracy = {name: fmean(_scores(by_strength[name][strength])) for name, strength in chosen.items()}
    gain = accuracy["weissi"] - accuracy["l2"]
    invariant = max(exact.outputs, exact.weissi) <= thresholds["difference"] < exact.l2
    return Report(
        met=invariant and gain >= thresholds["gain"],
        because=f"rescaling changes the outputs by {exact.outputs:.0e}, WEISSI by {exact.weissi:.0e} and L2 by "
        f"{exact.l2:.0%} of their size; test accuracy is {accuracy['weissi']:.3f} with WEISSI (lambda1 {chosen['weissi']}) "
        f"and {accuracy['l2']:.3f} with L2 (weight {chosen['l2']}), {100 * gain:+.2f} points.",
        numbers={
            "rescaled/outputs": exact.outputs,
            "rescaled/weissi": exact.weissi,
            "rescaled/l2": exact.l2,
            "gain": gain,
        }
        | {f"accuracy/{name}": value for name, value in accuracy.items()},
        header=[
            "",
            "strength",
            "test accuracy",
            "test loss",
            "noisy validation accuracy",
            "log product of norms",
        ],
        rows=[_row("none", "", steps["none"])]
        + [
            _row(NAMES[name], f"{s}, chosen" if s == chosen[name] else s, jobs)
            for name, levels in by_strength.items()
            for s, jobs in levels.items()
        ],
        notes=f"200 training rows, a fifth of them and of the validation rows with a wrong label, clean test rows. Means of "
        f"{len(steps['none'])} seeds ± the sample standard deviation; strengths are chosen by the noisy validation rows.",
        figures={"accuracy": _draw(by_strength, chosen, steps["none"])},
    )


def rescale(job: Job) -> Rescaled:
    """Of the job's trained network, in float64 and on random rows."""
    model, inputs = load_for_prediction(str(job.directory / "export"), trusted="")
    model = model.double().eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer, factor in zip(_layers(other), FACTORS, strict=True):
            layer.weight.mul_(factor)
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(ROWS, *inputs.shape, generator=generator, dtype=torch.float64)
    rows = VectorBatch(values=values, labels=None, row_ids=torch.arange(ROWS))
    with torch.inference_mode():
        outputs = _relative(model(rows), other(rows))
    weissi, l2 = (
        _relative(_value(penalty, model), _value(penalty, other)) for penalty in (WEISSI(1.0, 0.01), L2(1.0))
    )
    return Rescaled(outputs, weissi, l2)


def _layers(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def _value(penalty: Penalty, model: nn.Module) -> Tensor:
    return penalty(penalty.select(model)).detach()


def _relative(before: Tensor, after: Tensor) -> float:
    return ((after - before).abs().max() / before.abs().max()).item()


def _by_strength(jobs: list[Job], option: str) -> dict[float, list[Job]]:
    return {strength: of_strength for (strength,), of_strength in grouped(jobs, option).items()}


def _validation(jobs: list[Job]) -> tuple[float, float]:
    return fmean(_scores(jobs, "val/accuracy")), -fmean(_scores(jobs, "val/loss"))


def _scores(jobs: list[Job], name: str = "test/accuracy") -> list[float]:
    return [job.summary["metrics"][name] for job in jobs]


def _row(name: str, strength: Any, jobs: list[Job]) -> list[Any]:
    scores = [spread(_scores(jobs, metric)) for metric in ("test/accuracy", "test/loss", "val/accuracy")]
    return [name, strength, *scores, spread([_log_product(job) for job in jobs], ".2f")]


def _log_product(job: Job) -> float:
    """Of the norms of the three weights: the bound on how much outputs can change with inputs."""
    model, _ = load_for_prediction(str(job.directory / "export"), trusted="")
    return sum(layer.weight.norm().log().item() for layer in _layers(model))


def _draw(by_strength: dict[str, dict], chosen: dict[str, float], none: list[Job]) -> Figure:
    figure = Figure(figsize=(6.8, 3.8), layout="constrained")
    axes = figure.subplots()
    for (name, levels), colour in zip(by_strength.items(), (ORANGE, BLUE), strict=True):
        axes.plot(
            list(levels), [fmean(_scores(jobs)) for jobs in levels.values()], color=colour, label=NAMES[name]
        )
        for strength, jobs in levels.items():
            axes.plot([strength] * len(jobs), _scores(jobs), "o", color=colour, markersize=3.5, alpha=0.5)
        strength = chosen[name]
        axes.plot(
            strength, fmean(_scores(levels[strength])), "o", color=colour, markersize=9, fillstyle="none"
        )
    axes.axhline(fmean(_scores(none)), color=GREY, linestyle=":", label="neither")
    axes.set_xscale("log")
    axes.set_xlabel("strength (L2: weight, WEISSI: lambda1)")
    axes.set_title("accuracy on clean test rows; dots: each seed, circles: chosen", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=8)
    clean(axes)
    return figure
