"""What generate.py writes is current, complete and right."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from expunge.attacks import ATTACKS
from expunge.methods import METHODS
from expunge.metrics.base import METRICS
from expunge.record import Judged, Reference, Score, ScoreFile, Verdict
from tests.docs.pages import ROOT


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "docs"))
    return module


def test_marked_blocks_are_current(generate: ModuleType) -> None:
    assert generate.stale() == [], "run python docs/generate.py"


def test_a_stale_block_would_be_noticed(generate: ModuleType) -> None:
    page = "before\n<!-- x:begin -->\nold\n<!-- x:end -->\nafter\n"
    assert generate.refreshed(page, "x", "new") == page.replace("old", "new")
    with pytest.raises(SystemExit, match="no block 'y'"):
        generate.refreshed(page, "y", "new")


def test_reference_names_everything(generate: ModuleType) -> None:
    methods, metrics = generate.PAGES["methods"](), generate.PAGES["metrics"]()
    for name, cls in METHODS.items():
        if cls.__module__.startswith("expunge."):
            assert f"## {name}\n" in methods
            assert all(f"| `{parameter}` |" in methods for parameter in cls.model_fields)
    for name, one in METRICS.items():
        assert f"## {name}\n" in metrics or not one.function.__module__.startswith("expunge.")
    attacks = generate.PAGES["attacks"]()
    for name, cls in ATTACKS.items():
        if cls.__module__.startswith("expunge."):
            assert f"## {name}\n" in attacks
            assert all(f"| `{measure.name}` |" in attacks for measure in cls.measures)


def test_command_line_reference_is_what_help_prints(generate: ModuleType) -> None:
    page = generate.PAGES["command-line"]()
    for words in ("## expunge forget", "--save-target", "Example: expunge run study.yaml", "## expunge env"):
        assert words in page
    assert "\x1b" not in page


def test_no_cell_breaks_a_table(generate: ModuleType) -> None:
    for name in ("methods", "metrics", "attacks", "families", "benchmarks", "specifications"):
        width = None
        for line in generate.PAGES[name]().splitlines():
            if not line.startswith("| "):
                width = None
                continue
            cells = line.replace("\\|", "").count("|")
            width = width or cells
            assert cells == width, line


def run_file() -> ScoreFile:
    """Three seeds of one method and of retraining, with values chosen by hand."""

    def judged(method: str, seed: int, value: float, reference: Reference | None) -> Judged:
        score = Score(
            metric="accuracy",
            split="forget",
            value=value,
            unit="share",
            direction="match",
            reference=reference,
        )
        return Judged(problem="p", problem_id="0", method=method, label=method, seed=seed, scores=[score])

    against = [Reference(mean=0.9, values=[0.9], gap=value - 0.9) for value in (0.90, 0.92, 0.94)]
    models = [judged("npo", i, r.mean + r.gap, r) for i, r in enumerate(against)]
    models += [judged("retrain", i, 0.9, None) for i in range(3)]
    failed = Judged(
        problem="p", problem_id="0", method="ssd", label="ssd", seed=0, status="failed", reason="too large"
    )
    verdict = Verdict(
        problem="p", label="npo", metric="accuracy", split="forget", judgement="undecided", margin=0.05, n=3, n_reference=3,
        sentence="undecided",
    )  # fmt: skip
    problem = {"name": "p", "scope": "some rows", "counts": {"forget": 5, "train": 50}}
    return ScoreFile(name="hand", problems=[problem], judged=[*models, failed], verdicts=[verdict])


def test_results_page_by_hand(generate: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    run_file().write(path)
    _, page = generate.results.page(path)
    # Standard deviation of 90, 92, 94 is 2; t(2 degrees, 97.5 %) = 4.303.
    half = 4.303 * 2 / math.sqrt(3)
    assert f"| npo | 92.0 ± {half:.1f} (+2.0) ? |" in page
    assert "| retrain | 90.0 |" in page
    assert "| ssd | failed: too large |" in page
    assert "Some rows: 5 of 50 training rows." in page
