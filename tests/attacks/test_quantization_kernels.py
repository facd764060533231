"""Quantization by the kernels of bitsandbytes: what they do, against our emulation of it, and the ways they can be absent."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

from expunge.attacks import Scene
from expunge.attacks.kernels import _replacement, in_few_bits, library
from expunge.attacks.knowledge import knowledge
from expunge.attacks.quantization import Quantization, rounded
from expunge.errors import BadInput, Missing
from expunge.evidence import collect
from expunge.families.models import clone
from expunge.problem import Problem
from expunge.testing.problems import tiny_problem

from .conftest import value


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("classifier")


def test_it_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch, problem: Problem, target_scene: Scene):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    attack = Quantization(backend="bitsandbytes")
    with pytest.raises(Missing, match=r"not installed; run pip install 'expunge\[bitsandbytes\]'"):
        attack.run(target_scene)
    with pytest.raises(BadInput, match="has kernels for 8 and 4 bits, not for 6, 3"):
        Quantization(backend="bitsandbytes", bits=(6, 3))
    assert attack.spends() == {"models": 2}


def test_a_device_without_kernels_is_named(monkeypatch: pytest.MonkeyPatch):
    class Old:
        __version__ = "0.43.0"  # of the time when there were kernels for CUDA alone

    monkeypatch.setitem(sys.modules, "bitsandbytes", Old())  # pyright: ignore[reportArgumentType]
    with pytest.raises(Missing, match="bitsandbytes 0.43.0 has no kernels for the device 'cpu'; run on cuda"):
        library("cpu")


def test_four_bits_are_those_of_the_emulation():
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(24, 192, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    found = functional.dequantize_4bit(packed, state)
    torch.testing.assert_close(found, rounded(weight, 4, "nf4"), atol=2e-6, rtol=0)
    levels = functional.get_4bit_type("nf4", device="cpu") if hasattr(functional, "get_4bit_type") else None
    if levels is not None:
        one_block = torch.cat([levels, torch.zeros(48)])[None]
        torch.testing.assert_close(rounded(one_block, 4, "nf4"), one_block, atol=2e-7, rtol=0)


def test_layers_compute_what_rounded_weights_would(problem: Problem):
    pytest.importorskip("bitsandbytes.functional")
    rows = problem.splits["test"]

    def answers(model: nn.Module) -> np.ndarray:
        return collect(problem.family, model, rows, ["logp"])["logp"]

    exact, apart = answers(problem.target), {}
    for bits in (8, 4):
        model, layers = in_few_bits(problem.family, problem.target, bits, "cpu")
        assert layers == sum(type(m) is nn.Linear for m in problem.target.modules())
        apart[bits] = float(np.abs(answers(model) - exact).max())
    assert 0 < apart[8] < apart[4]
    four, _ = in_few_bits(problem.family, problem.target, 4, "cpu")
    byhand = clone(problem.target)
    with torch.no_grad():
        for module in byhand.modules():
            if isinstance(module, nn.Linear):
                # Its blocks run on over the rows, ours begin with each.
                flat = rounded(module.weight.reshape(1, -1), 4, "nf4")
                module.weight.copy_(flat.reshape(module.weight.shape))
    np.testing.assert_allclose(answers(four), answers(byhand), atol=1e-4)


def test_conv1d_of_gpt2_is_turned():
    pytest.importorskip("bitsandbytes")
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(6, 64)
    turned = _replacement(library("cpu"), layer, 4, "cpu")
    x = torch.randn(3, 64)
    torch.testing.assert_close(turned(x), layer(x), atol=0.2, rtol=0)
    assert isinstance(turned, nn.Linear) and turned.weight.shape == (6, 64)


def _scene(problem: Problem) -> Scene:
    from expunge.testing.attacks import _bare_scene

    return _bare_scene(problem.family.name)


@pytest.mark.parametrize("family", ["classifier", "causal_lm"])
def test_the_attack_runs_and_finds_nothing_in_the_target(family: str):
    pytest.importorskip("bitsandbytes")
    scene = _scene(tiny_problem(family))
    before = knowledge(scene.problem, scene.model, "forget").mean()
    scores = Quantization(backend="bitsandbytes").run(scene)
    assert value(scores, "quantization-rise") <= 1 - before + 1e-6
    assert value(scores, "quantization-knowledge") >= before - 1e-6
    curve = next(s.curve for s in scores if s.metric == "quantization-knowledge")
    assert curve is not None and {8.0, 4.0} <= set(curve.at)
