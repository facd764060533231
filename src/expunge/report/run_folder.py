"""From a run's folder to its report; no model is loaded."""

from __future__ import annotations

from pathlib import Path

import yaml

from expunge.files import read_json
from expunge.record import ScoreFile
from expunge.report.content import ReportInput


def read_run_folder(folder: Path, command: str = "") -> ReportInput:
    """What the records in `folder` (scores.json, losses.json, images.json, run.yaml) say; all but the first may be absent.

    `command` is what reproduces the run; default: running its own run.yaml again.
    """
    losses, images, specification = (folder / n for n in ("losses.json", "images.json", "run.yaml"))
    study = yaml.safe_load(specification.read_text()) if specification.exists() else {}
    passed, effective = (
        yaml.safe_dump(study[part], sort_keys=False, allow_unicode=True) if part in study else ""
        for part in ("passed", "effective")
    )
    return ReportInput(
        ScoreFile.read(folder / "scores.json"),
        read_json(losses) if losses.exists() else {},
        command or (f"expunge run {specification}" if study else ""),
        passed,
        effective,
        read_json(images) if images.exists() else {},
    )
