"""Images of two generators beside each other: the pixels are those of the models, and none travels before it is asked for."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from expunge.app import create_app
from expunge.errors import Missing
from expunge.evidence.collect import collect
from expunge.testing.problems import tiny_problem

pytest.importorskip("diffusers")
LABELS = ("target", "retrain")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray], Any]:
    """A record with the evidence of two models; what each makes of the first rows, asked of it directly."""
    problem = tiny_problem("diffusion")
    folder = tmp_path_factory.mktemp("images") / "runs"
    rows, pixels = [], []
    data = problem.splits["forget"].select(range(5))
    for seed, label in enumerate(LABELS):
        model = problem.fresh_model(seed)
        look = f"{seed:020x}"
        found = collect(problem.family, model, data, ["loss", "image"])
        (folder / "store" / "jobs" / look).mkdir(parents=True)
        found.write(folder / "store" / "jobs" / look / "forget.parquet")
        pixels.append(problem.family.generate(model, data, ["image"], 2)["image"])
        rows.append(
            {"problem": "p", "label": label, "seed": 0, "model": None, "observe": look, "attacks": {}}
        )
    judged = [
        {"problem": "p", "problem_id": "p", "label": n, "method": n, "seed": 0, "status": "ok", "scores": []}
        for n in LABELS
    ]
    card = {"name": "p", "family": "diffusion", "scope": "red", "counts": {"forget": 5}}
    scores = {"schema_version": 3, "kind": "scores", "name": "r", "problems": [card], "judged": judged}
    (folder / "r").mkdir()
    (folder / "r" / "scores.json").write_text(json.dumps(scores))
    (folder / "r" / "jobs.json").write_text(
        json.dumps({"schema_version": 1, "kind": "jobs", "jobs": [], "rows": rows})
    )
    return folder, pixels, data


def _ask(folder: Path, path: str, **more: Any) -> Any:
    client = TestClient(create_app(folder, hosts=["testserver"]))
    params = {"problem": "p", "a": "target@0", "b": "retrain@0", "split": "forget", **more}
    answer = client.get(f"/api/runs/r/{path}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_images_are_those_of_the_models(drawn: tuple[Path, list[np.ndarray], Any]) -> None:
    folder, pixels, data = drawn
    assert _ask(folder, "contrast")["images"]
    page = _ask(folder, "images", reveal=True, offset=1, limit=3)
    assert page["total"] == 5 and [r["id"] for r in page["rows"]] == [str(i) for i in data["id"]][1:4]
    for place, row in enumerate(page["rows"], start=1):
        for side, made in zip("ab", pixels, strict=True):
            shown = Image.open(io.BytesIO(base64.b64decode(row[side].removeprefix("data:image/png;base64,"))))
            assert shown.size == (8, 8) and shown.mode == "RGB"
            plane = np.asarray(shown)
            for channel in range(3):  # recorded plane by plane, row by row
                assert (
                    plane[:, :, channel].ravel().tolist()
                    == made[place][64 * channel : 64 * (channel + 1)].tolist()
                )
    assert any(r["a"] != r["b"] for r in page["rows"])


def test_no_image_travels_before_it_is_asked_for(drawn: tuple[Path, list[np.ndarray], Any]) -> None:
    page = _ask(drawn[0], "images")
    assert not page["revealed"] and len(page["rows"]) == 5
    assert all(r["a"] is r["b"] is r["prompt"] is None for r in page["rows"])
    assert "image" not in _ask(drawn[0], "examples")["columns"]


def test_images_that_are_not_square_are_told() -> None:
    from expunge.app.generated import _pictures

    class Wide:
        @staticmethod
        def lists(_name: str, _rows: object) -> list[list[int]]:
            return [[0] * 18]

    with pytest.raises(Missing, match="not square"):
        _pictures(Wide(), [0])  # pyright: ignore[reportArgumentType]


def test_studies_keep_the_images_that_judges_look_at() -> None:
    from expunge.metrics.base import standard_metrics
    from expunge.studies.graph import quantities

    problem = tiny_problem("diffusion")
    found = standard_metrics(problem.family)
    wanted = quantities(found, problem, ("model",))
    judged = {s for s, q in wanted.items() if q & problem.family.generated - {"image"}}
    assert judged and {s for s, q in wanted.items() if "image" in q} == judged
