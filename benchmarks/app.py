"""The app at scale: 1,000 runs, and a table of 200,000 examples, from starting to ask until the page stands.

Made-up records of the shape that studies write; Chromium, where it is here, is timed from opening the address until the
first rows are drawn.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expunge.app.runs import Runs
from expunge.app.screen import screen
from expunge.app.server import catalog

RUNS, EXAMPLES, CLASSES = 1000, 200_000, 10
METHODS = ["target", "retrain", "npo", "ssd", "scrub", "salun", "fine-tune", "gradient-ascent"]
SCORES = [
    (m, s) for m in ("accuracy", "mean-loss", "ece", "kl-to-retrained") for s in ("forget", "retain", "test")
]
SCORES += [(f"mia-{k}-logistic", "forget") for k in ("loss", "confidence", "entropy")] + [("seconds", "run")]


def score(metric: str, split: str, value: float, retrained: bool) -> dict[str, Any]:
    made = {
        "metric": metric, "split": split, "value": value, "unit": "share", "direction": "match", "status": "ok", "reason": "",
        "n": 400, "interval": {"low": value - 0.02, "high": value + 0.02, "level": 0.95, "method": "wilson"},
        "groups": {str(c): value for c in range(CLASSES)}, "attack": metric.startswith("mia"),
    }  # fmt: skip
    return made if retrained else {**made, "reference": {"mean": 0.5, "values": [0.5], "gap": value - 0.5}}


def record(name: str, generator: np.random.Generator) -> dict[str, Any]:
    judged = [
        {
            "problem": "digits", "problem_id": "x", "method": m, "label": m, "seed": 0, "model_id": "y",
            "scores": [score(k, s, float(generator.random()), m == "retrain") for k, s in SCORES],
        }
        for m in METHODS
    ]  # fmt: skip
    problem = {
        "name": "digits",
        "family": "classifier",
        "scope": "a random tenth",
        "counts": {"train": 1000, "forget": 100},
    }
    return {"schema_version": 3, "kind": "scores", "name": name, "problems": [problem], "judged": judged}


def evidence(seed: int) -> pa.Table:
    generator = np.random.default_rng(seed)
    logp = np.log(generator.dirichlet(np.ones(CLASSES), EXAMPLES)).astype(np.float32)
    group = np.random.default_rng(0).integers(CLASSES, size=EXAMPLES)
    columns = {
        "id": pa.array([f"row-{i:06d}" for i in range(EXAMPLES)]), "group": pa.array(group.astype(str)),
        "logp": pa.FixedSizeListArray.from_arrays(pa.array(logp.ravel()), CLASSES),
        "loss": pa.array(-logp[np.arange(EXAMPLES), group]), "correct": pa.array((logp.argmax(1) == group).astype(np.int8)),
    }  # fmt: skip
    for name in ("confidence", "margin", "entropy"):
        columns[name] = pa.array(generator.random(EXAMPLES).astype(np.float32))
    return pa.table(columns)


def make(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for i in range(RUNS):
        (folder / f"run-{i:04d}").mkdir(parents=True)
        (folder / f"run-{i:04d}" / "scores.json").write_text(json.dumps(record(f"run-{i:04d}", generator)))
    big = folder / "big"
    big.mkdir()
    (big / "scores.json").write_text(json.dumps(record("big", generator)))
    rows = []
    for seed, label in enumerate(("npo", "retrain")):
        look, model = f"{seed:020x}", f"{seed + 100:020x}"
        (folder / "store" / "jobs" / look).mkdir(parents=True)
        pq.write_table(evidence(seed), folder / "store" / "jobs" / look / "test.parquet")
        (folder / "store" / "jobs" / model).mkdir(parents=True)
        described = {"family": {"family": "classifier", "classes": [str(c) for c in range(CLASSES)]}}
        (folder / "store" / "jobs" / model / "expunge.json").write_text(json.dumps(described))
        rows.append(
            {"problem": "digits", "label": label, "seed": 0, "model": model, "observe": look, "attacks": {}}
        )
    (big / "jobs.json").write_text(
        json.dumps({"schema_version": 1, "kind": "jobs", "jobs": [], "rows": rows})
    )


def shown(what: str, seconds: float, bound: float) -> bool:
    print(f"{what:<64} {seconds:6.2f} s   {'under' if seconds < bound else 'OVER'} {bound:g} s")
    return seconds < bound


def in_the_browser(folder: Path) -> bool:
    chromium = os.environ.get("EXPUNGE_CHROMIUM") or shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("no Chromium: the pages themselves were not timed")
        return True
    command = [
        sys.executable,
        "-c",
        "from expunge.cli import main; main()",
        "app",
        str(folder),
        "--port",
        "0",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    found = re.search(r"http://\S+/", server.stdout.readline())
    assert found is not None
    table = "#/contrast?run=big&problem=digits&a=npo%400&b=retrain%400&split=test"
    good = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for what, where, rows, bound in (
            ("first page, one run", "#/screen?run=run-0001", "models", 1.0),
            (f"table of {RUNS:,} runs", "#/screen?scope=all", "models", 2.0),
            (f"two models on {EXAMPLES:,} examples", table, "examples", 2.0),
        ):
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            started = time.perf_counter()
            page.goto(f"{found[0]}{where}")
            page.wait_for_selector(f"[aria-label={rows}] .vrow [role=cell]")
            good.append(shown(f"browser: {what}", time.perf_counter() - started, bound))
            if rows == "examples":
                started = time.perf_counter()
                page.evaluate("document.querySelector('[aria-label=examples]').scrollTop = 3e6")
                page.wait_for_timeout(20)
                while not page.evaluate("document.querySelector('[aria-label=examples] .vrow [role=cell]')"):
                    page.wait_for_timeout(10)
                good.append(
                    shown("browser: rows in the middle of the table", time.perf_counter() - started, 1.0)
                )
            page.close()
        browser.close()
    server.terminate()
    server.wait()
    return all(good)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "runs"
        make(folder)
        size = sum(f.stat().st_size for f in folder.glob("*/scores.json"))
        print(f"{RUNS + 1:,} score files of {size / 1e6:.0f} MB in all; {EXAMPLES:,} examples of two models")
        catalog()  # what a server has imported before it answers
        runs = Runs(folder)
        # CPU seconds, which other work on the machine does not change; the pages are timed by the clock.
        started = time.process_time()
        rows = len(screen(runs).rows)
        spent = time.process_time() - started
        good = [shown(f"server, CPU: {rows:,} rows of all runs, read for the first time", spent, 2.0)]
        started = time.process_time()
        screen(runs).model_dump_json()
        good.append(shown("server, CPU: the same again, as JSON", time.process_time() - started, 1.0))
        good.append(in_the_browser(folder))
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
