"""Low-rank adapters from the command line: what is written, who can read it, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from expunge.data.checkpoints import load_checkpoint
from expunge.families.models import fingerprint
from expunge.families.weights import load_folder
from expunge.record import ScoreFile
from expunge.studies.study import run_study
from expunge.testing.problems import tiny_problem
from tests.cli.conftest import OWN, Run

METHOD = '''
from expunge.methods.objective import Objective

class Shifting(Objective):
    """Ascent that moves a bias at the end, past the adapters."""

    name = "shifting"
    paper = "none"

    def loss(self, step):
        return {"forget": -step.nll("forget")}

    def finish(self, problem, model, state):
        model.head.bias += 1.0
'''


@pytest.fixture
def language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a language model as `transformers` saves it, and its training data."""
    monkeypatch.chdir(tmp_path)
    problem = tiny_problem("causal_lm")
    target: Any = problem.target
    target.save_pretrained("base")
    problem.family.tokenizer.save_pretrained("base")  # pyright: ignore
    problem.train.select_columns(["id", "question", "answer"]).to_json("train.jsonl")
    Path("ids.txt").write_text("\n".join(problem.forget_ids))
    return tmp_path


ASK = ["--model", "base", "--data", "train.jsonl", "--forget", "ids.txt", "--family", "causal_lm"]
TRAIN = ["--method", "npo", "--set", "epochs=1", "--set", "lr=0.01", "--set", "optimizer=adamw"]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 20)[None]).logits


def test_model_and_adapter_are_written_and_peft_reads_the_adapter(language: Path, expunge: Run) -> None:
    done = expunge(
        "forget", *ASK, *TRAIN, "--lora", "r=2,alpha=6,targets=q_proj+v_proj", "--out", "out", "--json"
    )
    assert done.code == 0, done.err
    assert done.json["adapter"] == "out/adapter"
    assert done.json["parameters"]["lora"] == {
        "r": 2,
        "alpha": 6.0,
        "dropout": 0.0,
        "targets": ["q_proj", "v_proj"],
    }
    config = json.loads(Path("out/adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (2, 6, "LORA")
    assert config["base_model_name_or_path"] == str((language / "base").resolve())
    assert set(load_file("out/adapter/adapter_model.safetensors")) == {
        f"base_model.model.model.layers.{i}.self_attn.{p}_proj.lora_{x}.weight"
        for i in (0, 1)
        for p in "qv"
        for x in "AB"
    }
    merged = load_folder(Path("out"))[0].eval()
    base = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    before = logits(base)
    read = peft.PeftModel.from_pretrained(base, "out/adapter").eval()
    torch.testing.assert_close(logits(read), logits(merged), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(merged), before, atol=1e-3)
    card = Path("out/adapter/README.md").read_text()
    assert "library_name: peft" in card and "lora" in card and "r: 2, alpha: 6.0" in card
    assert str(language) not in card.split("---")[1]  # a folder on this disk is no model of a hub


def test_an_audit_reads_the_adapter_with_its_base(language: Path, expunge: Run) -> None:
    assert expunge("forget", *ASK, *TRAIN, "--lora", "r=2", "--out", "out").code == 0
    merged = load_folder(Path("out"))[0]
    from_adapter = load_checkpoint("out/adapter", Path())
    assert from_adapter.model is not None and from_adapter.location == str(language / "base")
    for name, value in from_adapter.model.state_dict().items():
        torch.testing.assert_close(value, merged.state_dict()[name], rtol=1e-6, atol=1e-6)
    assert all(p.requires_grad for p in from_adapter.model.parameters())
    data = [*ASK[2:], "--metrics", "mean-loss", "--attacks", "detach-guard", "--json"]
    scores, parts = {}, {}
    for model in ("out", "out/adapter"):
        done = expunge("audit", "--model", model, "--target", "base", *data)
        assert done.code == 0, done.err
        judged = next(m for m in ScoreFile(**done.json).judged if m.method == "audited")
        scores[model] = [s.value for s in judged.scores if not s.attack]
        parts[model] = next(s.value for s in judged.scores if s.metric == "detach-guard-parts")
    # Handed over as adapters, the base can be had without them.
    assert parts == {"out": 0, "out/adapter": 1}
    assert scores["out"] == pytest.approx(scores["out/adapter"], abs=1e-5)


def test_a_base_that_moved_is_named_and_another_is_refused(language: Path, expunge: Run) -> None:
    assert expunge("forget", *ASK, *TRAIN, "--lora", "r=2", "--out", "out").code == 0
    (language / "base").rename(language / "elsewhere")
    data = [*ASK[2:], "--metrics", "mean-loss"]
    gone = expunge("audit", "--model", "out/adapter", *data)
    assert gone.code != 0 and "base' is no folder" in gone.err
    named = expunge("audit", "--model", "out/adapter", "--base", "elsewhere", *data)
    assert named.code == 0, named.err
    other: Any = tiny_problem("causal_lm").fresh_model(9)
    other.save_pretrained("other")
    tiny_problem("causal_lm").family.tokenizer.save_pretrained("other")  # pyright: ignore
    wrong = expunge("audit", "--model", "out/adapter", "--base", "other", *data)
    assert wrong.code == 2
    assert (
        "'other' is not the model that the adapter" in wrong.err and "name that one with --base" in wrong.err
    )


def test_a_target_trained_here_is_the_base_where_it_is_saved(
    tmp_path: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ask = [
        "--benchmark",
        "diabetes",
        "--method",
        "gradient-ascent",
        "--set",
        "epochs=1",
        "--set",
        "lr=1e-4",
        "--lora",
        "r=1",
    ]
    assert expunge("forget", *ask, "--save-target", "target", "--out", "kept").code == 0
    merged = load_folder(tmp_path / "kept")[0]
    again = load_checkpoint("kept/adapter", tmp_path).model
    assert again is not None
    torch.testing.assert_close(again.state_dict(), merged.state_dict())
    record = json.loads((tmp_path / "kept/adapter/expunge.json").read_text())
    assert (
        record["base_id"] == fingerprint(load_folder(tmp_path / "target")[0])
        and record["method"] == "gradient-ascent"
    )
    assert expunge("forget", *ask, "--out", "lost").code == 0
    nowhere = expunge("audit", "--model", "lost/adapter", "--benchmark", "diabetes")
    assert nowhere.code == 2 and "does not say which model it belongs to; name it with --base" in nowhere.err
    assert (
        expunge(
            "audit",
            "--model",
            "lost/adapter",
            "--base",
            "target",
            "--benchmark",
            "diabetes",
            "--metrics",
            "mae",
        ).code
        == 0
    )


def test_no_adapter_is_written_where_more_than_it_moved(mine: Path, expunge: Run) -> None:
    (mine / "shifting.py").write_text(METHOD)
    ask = [*OWN, "--forget", "user:user=ann", "--set", "epochs=1", "--lora", "r=1", "--json"]
    plain = expunge("forget", *ask, "--method", "gradient-ascent", "--out", "plain")
    assert plain.code == 0 and (mine / "plain/adapter/adapter_model.safetensors").is_file()
    shifted = expunge("forget", *ask, "--method", "./shifting.py:Shifting", "--out", "shifted")
    assert shifted.code == 0, shifted.err
    assert shifted.json["adapter"] is None and not (mine / "shifted/adapter").exists()
    assert any("more than the adapters differs from the target" in note for note in shifted.json["notes"])


@pytest.mark.parametrize(("method", "lora", "message"), [
    ("ssd", "r=4", "method 'ssd' cannot train low-rank adapters; leave out --lora"),
    ("salun", "r=4", "method 'salun' cannot train low-rank adapters; leave out --lora"),
    ("npo", "rank=4", "lora: unknown key 'rank'"),
    ("npo", "r=0", "lora: 'r' should be greater than or equal to 1"),
    ("npo", "r=1,targets=q_proj", "lora: the model has no linear layer 'q_proj'; it has head, hidden"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_one_sentence(
    method: str, lora: str, message: str, mine: Path, expunge: Run
) -> None:
    done = expunge(
        "forget", *OWN, "--forget", "user:user=ann", "--method", method, "--lora", lora, "--out", "out"
    )
    assert done.code == 2 and message in done.err and not (mine / "out").exists()


@pytest.mark.parametrize(("change", "message"), [
    ("pickle", "has no safetensors weights, and pickle can run code"),
    ("key", "cannot be merged into"),
    ("shape", "cannot be merged into"),
])  # fmt: skip
def test_a_damaged_adapter_is_refused(change: str, message: str, language: Path, expunge: Run) -> None:
    from safetensors.torch import save_file

    assert expunge("forget", *ASK, *TRAIN, "--lora", "r=2,targets=q_proj", "--out", "out").code == 0
    file = Path("out/adapter/adapter_model.safetensors")
    weights = load_file(file)
    first = min(weights)
    if change == "pickle":
        file.unlink()
        torch.save(weights, "out/adapter/adapter_model.bin")
    elif change == "key":
        del weights[first]
        save_file(weights, file)
    else:
        save_file({**weights, first: weights[first][:, :-1].contiguous()}, file)
    done = expunge("audit", "--model", "out/adapter", *ASK[2:], "--metrics", "mean-loss")
    assert done.code == 2 and message in done.err and "Traceback" not in done.err


def test_show_and_study_name_the_parameter(expunge: Run) -> None:
    shown = expunge("show", "npo")
    assert shown.code == 0 and "lora" in shown.out and "low-rank adapters" in shown.out
    (row,) = [p for p in expunge("show", "npo", "--json").json["parameters"] if p["name"] == "lora"]
    assert row["default"] is None and "LoRA" in row["type"]
    (row,) = [p for p in expunge("show", "s3t", "--json").json["parameters"] if p["name"] == "lora"]
    assert row["default"]["r"] == 16


def test_a_study_compares_it_with_full_training(tmp_path: Path) -> None:
    methods: list[Any] = [
        {"name": "gradient-ascent", "epochs": 1, "lr": 0.001},
        {"name": "gradient-ascent", "epochs": 1, "lr": 0.001, "lora": {"r": 2}},
    ]
    study = {
        "name": "small",
        "problems": [{"benchmark": "diabetes"}],
        "methods": methods,
        "seeds": [0],
        "metrics": ["mae"],
    }
    finished = run_study(study, tmp_path, workers=0, display="none")
    labels = {judged.label for judged in finished.scores.judged}
    assert {
        "gradient-ascent (epochs=1, lr=0.001)",
        "gradient-ascent (epochs=1, lr=0.001, lora=r=2)",
    } <= labels
    run = yaml.safe_load((finished.folder / "run.yaml").read_text())
    assert [m["parameters"].get("lora") for m in run["effective"]["methods"]] == [None, {"r": 2}]
