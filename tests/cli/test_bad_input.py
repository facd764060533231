"""Bad input gives one clear sentence, the right exit code, and loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.cli.conftest import OWN, Run

FORGET = ["forget", "--method", "gradient-ascent", "--out", "out"]


def refused(expunge: Run, *arguments: str | Path, code: int = 2) -> str:
    """The error sentence of a command that must be refused."""
    done = expunge(*arguments)
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    sentences = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, done.err
    assert not Path("out").exists()
    return sentences[0].removeprefix("error: ")


def own(**changed: str | None) -> list[str]:
    """The options of the user's own problem, some of them changed or left out."""
    options = dict(zip(OWN[::2], OWN[1::2], strict=True))
    options |= {"--" + k.replace("_", "-"): v for k, v in changed.items()}  # type: ignore[misc]
    return [part for k, v in options.items() if v is not None for part in (k, v)]


def test_missing_file(mine: Path, expunge: Run) -> None:
    message = refused(expunge, *FORGET, *own(data="absent.csv"), "--forget", "class=1")
    assert "absent.csv" in message


def test_ids_not_in_the_data_are_listed(mine: Path, expunge: Run) -> None:
    (mine / "ids.txt").write_text("r1\nzz9\nnobody\n")
    message = refused(expunge, *FORGET, *own(), "--forget", "ids.txt")
    assert message == "2 of the 3 ids to forget are not in the data: nobody, zz9; check the id column"


def test_empty_forget_set(mine: Path, expunge: Run) -> None:
    assert "the forget set is empty" in refused(expunge, *FORGET, *own(), "--forget", "where:a > 1000")


def test_forget_everything(mine: Path, expunge: Run) -> None:
    message = refused(expunge, *FORGET, *own(), "--forget", "where:a > -1000")
    assert (
        message.startswith("the forget set is the whole training set") and "fresh untrained model" in message
    )


def test_nan_in_features(mine: Path, expunge: Run) -> None:
    text = (mine / "train.csv").read_text().splitlines()
    text[3] = "r2,bob,nan,0.5,0"
    (mine / "train.csv").write_text("\n".join(text) + "\n")
    message = refused(expunge, *FORGET, *own(), "--forget", "class=1")
    assert "NaN or infinity in 'a' (first: id 'r2')" in message and "drop or impute" in message


def test_label_out_of_range(mine: Path, expunge: Run) -> None:
    text = (mine / "train.csv").read_text().replace("r4,bob", "r4,bob").splitlines()
    text[5] = text[5][:-1] + "7"
    (mine / "train.csv").write_text("\n".join(text) + "\n")
    message = refused(expunge, *FORGET, *own(), "--forget", "class=1")
    assert "2" in message and ("classes" in message or "label" in message)


def test_a_method_that_needs_a_retain_set_without_one(mine: Path, expunge: Run) -> None:
    spec = {
        "model": {"factory": "./net.py:make", "weights": "net.safetensors"}, "forget_data": "train.csv", "family": "classifier",
        "id": "key", "inputs": ["a", "b"],
    }  # fmt: skip
    (mine / "problem.yaml").write_text(yaml.safe_dump(spec))
    message = refused(expunge, "forget", "--method", "fine-tune", "--out", "out", "--problem", "problem.yaml")
    assert message == "method 'fine-tune' cannot run on train: it needs a retain set"


def test_wrong_family(mine: Path, expunge: Run) -> None:
    message = refused(
        expunge, "forget", "--method", "blindspot", "--out", "out", *own(), "--forget", "class=1"
    )
    assert "it fits regressor, not classifier" in message


def test_pickle_checkpoint(mine: Path, expunge: Run) -> None:
    torch.save({}, "net.pt")
    message = refused(expunge, *FORGET, *own(weights="net.pt"), "--forget", "class=1")
    assert "net.pt' is a pickle checkpoint, which can run code" in message and "--allow-pickle" in message


def test_code_is_no_checkpoint(mine: Path, expunge: Run) -> None:
    message = refused(expunge, *FORGET, *own(weights="net.py"), "--forget", "class=1")
    assert "net.py' is code, not weights" in message and "./file.py:function" in message
    assert "pickle" not in message


def test_an_audit_is_not_written_into_a_file(mine: Path, expunge: Run) -> None:
    Path("report").write_text("mine")
    # Refused before any work: neither the model nor the data exist.
    message = refused(expunge, "audit", "--model", "absent", "--data", "absent.csv", "--out", "report")
    assert message == "--out 'report' is a file; name a folder, which is made where it does not exist"
    assert Path("report").read_text() == "mine"


def test_pickle_that_would_run_code_is_refused_even_when_allowed(mine: Path, expunge: Run) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("touch owned",)

    torch.save({"x": Evil()}, "net.pt")
    done = expunge(*FORGET, *own(weights="net.pt"), "--forget", "class=1", "--allow-pickle")
    assert done.code == 2 and not Path("owned").exists()
    assert "holds more than tensors, which is never read" in done.err and "Traceback" not in done.err


def test_truncated_safetensors(mine: Path, expunge: Run) -> None:
    Path("net.safetensors").write_bytes(Path("net.safetensors").read_bytes()[:100])
    assert "net.safetensors' is not a readable safetensors file" in refused(
        expunge, *FORGET, *own(), "--forget", "class=1"
    )


def test_weights_of_another_network(mine: Path, expunge: Run) -> None:
    (mine / "net.py").write_text((mine / "net.py").read_text().replace("make(hidden=8)", "make(hidden=9)"))
    message = refused(expunge, *FORGET, *own(), "--forget", "class=1")
    assert "do not fit the model" in message and "shape" in message


def test_misspelled_key_in_yaml(tmp_path: Path, expunge: Run) -> None:
    (tmp_path / "s.yaml").write_text("problems: [{benchmark: diabetes}]\nmethods: [npo]\nsedes: [1]\n")
    message = refused(expunge, "run", tmp_path / "s.yaml", "--runs", tmp_path / "runs")
    assert message == "study: unknown key 'sedes'; did you mean 'seeds'?"


def test_broken_yaml(tmp_path: Path, expunge: Run) -> None:
    (tmp_path / "s.yaml").write_text("problems: [\nmethods: npo")
    assert "cannot be read (line 2)" in refused(
        expunge, "run", tmp_path / "s.yaml", "--runs", tmp_path / "runs"
    )


def test_unknown_names_get_suggestions(mine: Path, expunge: Run) -> None:
    assert "did you mean 'npo'" in refused(expunge, "show", "nop")
    assert "did you mean 'methods'" in refused(expunge, "list", "methds")
    assert "did you mean 'demo'" in refused(expunge, "run", "dmeo")
    message = refused(
        expunge, "forget", "--method", "gradient-asent", "--out", "out", *own(), "--forget", "class=1"
    )
    assert "did you mean 'gradient-ascent'" in message


def test_parameter_out_of_range(mine: Path, expunge: Run) -> None:
    message = refused(expunge, *FORGET, *own(), "--forget", "class=1", "--set", "lr=-1")
    assert message == "gradient-ascent: 'lr' should be greater than or equal to 0, got -1"


def test_an_existing_output_is_not_overwritten(mine: Path, expunge: Run) -> None:
    Path("taken").mkdir()
    Path("taken/thesis.txt").write_text("mine")
    done = expunge("forget", "--method", "ssd", "--out", "taken", *own(), "--forget", "class=1")
    assert done.code == 2 and "'taken' exists already" in done.err
    assert Path("taken/thesis.txt").read_text() == "mine"


def test_a_run_that_is_not_there(tmp_path: Path, expunge: Run) -> None:
    assert "is no finished run" in refused(expunge, "compare", tmp_path / "nothing")
    assert "write it as accuracy@test=0.8" in refused(
        expunge, "compare", Path(__file__).parent, "--floor", "accuracy@test"
    )
    assert "is no finished run" in refused(expunge, "report", tmp_path)


def test_a_finished_run_with_a_failed_method_exits_with_1(
    tmp_path: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = {
        "problems": [{"benchmark": "diabetes", "forget": "fraction=0.1"}], "seeds": [0],
        "methods": [{"name": "gradient-ascent", "lr": 1e8, "epochs": 20}, "fine-tune"],
    }  # fmt: skip
    Path("s.yaml").write_text(yaml.safe_dump(study))
    done = expunge("run", "s.yaml", "--workers", "0", "--display", "none")
    assert done.code == 1
    assert "NaN or infinite weights" in done.err
    assert Path("runs/s/report.html").exists()


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0,
    reason="mounts a tiny file system, which needs root on Linux",
)
def test_disk_full_while_writing_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        study = {
            "problems": [{"benchmark": "diabetes", "forget": "fraction=0.1"}],
            "methods": ["fine-tune"],
            "seeds": [0],
        }
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
        command = [
            sys.executable,
            "-c",
            "from expunge.cli import main; main()",
            "run",
            str(tmp_path / "s.yaml"),
        ]
        full = subprocess.run(
            [*command, "--runs", str(disk / "runs"), "--workers", "0", "--display", "none"],
            capture_output=True,
            text=True,
        )
        assert full.returncode == 1, full.stderr
        assert "Traceback" not in full.stderr and "No space left on device" in full.stderr
        jobs = disk / "runs" / "store" / "jobs"
        complete = sorted(p.name for p in jobs.glob("[!.]*"))
        assert complete and all((jobs / name / "job.json").exists() for name in complete)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        again = subprocess.run(
            [*command, "--runs", str(disk / "runs"), "--workers", "0", "--display", "none"],
            capture_output=True,
            text=True,
        )
        assert again.returncode == 0, again.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)
