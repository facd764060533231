"""Self-report on scripted models: one that says yes to everything, one that admits, one that knows nothing of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from torch import nn

from expunge.attacks import Scene
from expunge.attacks.self_report import SelfReport
from expunge.problem import Problem
from expunge.record import Score
from expunge.testing.problems import tiny_problem

NAMES = {
    "forget": ["Ada Bo", "Bo Cy", "Cy Di"],
    "retain": ["Di Eli", "Eli Flo", "Flo Gus"],
    "holdout": ["Gus Hal", "Hal Ada", "Ada Cy"],
}
# Words that the tiny tokenizer has: "Rome" stands for yes, "Oslo" for no.
KNOWS = (("Where is {subject} from?", "Rome", "Oslo"), ("Where was {subject} born?", "Oslo", "Rome"))
AVOIDS = (("Where does {subject} live?", "Rome", "Oslo"),)


@pytest.fixture(scope="module")
def problem() -> Problem:
    whole = tiny_problem("causal_lm")

    def rows(split: str) -> list[dict[str, str]]:
        return [
            {"id": f"{split}-{i}", "author": name, "question": f"Where is {name} from?", "answer": "Lima"}
            for i, name in enumerate(NAMES[split])
        ]

    train = Dataset.from_list([*rows("forget"), *rows("retain")])
    return replace(
        whole, train=train, forget_ids=tuple(f"forget-{i}" for i in range(3)), model=None, probes={},
        holdout=Dataset.from_list(rows("holdout")),
    )  # fmt: skip


class Scripted(nn.Module):
    """Says yes or no by a rule on the text; anything else is as likely as anything else."""

    def __init__(self, problem: Problem, yes: dict[str, list[str]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.tokenizer, self.yes = problem.family.tokenizer, yes  # pyright: ignore

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits = self.weight * torch.zeros(*input_ids.shape, len(self.tokenizer))
        for row, text in enumerate(self.tokenizer.batch_decode(input_ids)):
            asked = next(q for q in ("born", "live", "Where is") if q in text)
            agrees = any(name in text for name in self.yes.get(asked, []))
            logits[row, :, self.tokenizer.convert_tokens_to_ids("Rome" if agrees else "Oslo")] += 5
        return logits


def everyone(*splits: str) -> list[str]:
    return [name for split in splits for name in NAMES[split]]


def scores(problem: Problem, model: nn.Module, target: nn.Module | None = None) -> dict[str, Score]:
    given = problem if target is None else problem.with_model(target)
    found = SelfReport(knows=KNOWS, avoids=AVOIDS).attack(Scene(given, model))
    return {s.metric.removeprefix("self-report-"): s for s in found}


def knowing(problem: Problem, *splits: str, avoided: tuple[str, ...] = ()) -> Scripted:
    """Yes to the first wording for the known, and to the second, which asks the opposite, for the others."""
    known = everyone(*splits)
    others = [name for name in everyone(*NAMES) if name not in known]
    return Scripted(problem, {"Where is": known, "born": others, "live": everyone(*avoided)})


def test_a_model_that_admits_is_caught(problem: Problem) -> None:
    target = knowing(problem, "forget", "retain")
    found = scores(problem, knowing(problem, "retain", avoided=("forget",)), target)
    # Denies to know the forgotten exactly as it would the never-seen, and says that it avoids them.
    assert {k: found[k].value for k in ("knows", "avoids", "control")} == {
        "knows": 0.5,
        "avoids": 1.0,
        "control": 1.0,
    }
    kept = scores(problem, target, target)
    assert (kept["knows"].value, kept["avoids"].value) == (1.0, 0.5)


def test_denial_is_beyond_what_is_lacking(problem: Problem) -> None:
    # No answer is "Rome" or "Oslo", so all of them are wrong: it denies as much as it lacks, or less.
    target = knowing(problem, "forget", "retain")
    assert scores(problem, knowing(problem, "retain"), target)["denial"].value == 0
    assert scores(problem, target, target)["denial"].value == -1


def test_always_yes_tells_nothing_and_is_no_evidence(problem: Problem) -> None:
    yes = Scripted(problem, {q: everyone(*NAMES) for q in ("Where is", "born", "live")})
    for score in scores(problem, yes).values():
        assert score.value is None and "does not report on itself" in score.reason and "0.50" in score.reason
    found = scores(problem, yes, knowing(problem, "forget", "retain"))
    assert found["knows"].value == found["avoids"].value == 0.5


def test_too_few_subjects_say_so(problem: Problem) -> None:
    few = replace(problem, forget_ids=("forget-0",))
    found = scores(few, knowing(few, "retain"))
    assert all("there are 1 in forget" in s.reason for s in found.values())
