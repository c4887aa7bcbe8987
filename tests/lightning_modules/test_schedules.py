"""The learning rate rises, falls and ends where it should."""

import math

import pytest

from lightning_modules.schedules import WarmupDecay


@pytest.mark.parametrize("decay, middle", [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_rises_to_the_peak_and_decays(decay, middle):
    schedule = WarmupDecay(decay, warmup=0.2)
    assert schedule(0.1) == pytest.approx(0.5)
    assert schedule(0.2) == pytest.approx(1.0)
    assert schedule(0.6) == pytest.approx(middle)
    assert schedule(1.0) == pytest.approx(1.0 if decay == "constant" else 0.0)


def test_cosine_is_a_cosine():
    assert WarmupDecay("cosine", warmup=0.0)(0.25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_final_is_the_end():
    assert WarmupDecay("linear", warmup=0.0, final=0.1)(1.0) == pytest.approx(0.1)
    assert WarmupDecay("linear", warmup=0.0, final=0.1)(7.0) == pytest.approx(0.1)


def test_no_warmup_starts_at_the_peak():
    assert WarmupDecay("linear", warmup=0.0)(0.0) == 1.0


@pytest.mark.parametrize("options", [{"decay": "exp"}, {"warmup": 1.0}, {"warmup": -0.1}, {"final": 1.5}])
def test_wrong_options_are_named(options):
    [name] = options
    with pytest.raises(ValueError, match=f"^{name}="):
        WarmupDecay(**options)
