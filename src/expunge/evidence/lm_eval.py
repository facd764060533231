"""Utility on public tasks: the `lm-eval` harness on a model that is loaded already."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from expunge.errors import BadInput, ExpungeError, did_you_mean
from expunge.extras import load_extra
from expunge.families import CausalLM, Family
from expunge.record import Direction, Interval, Score

PURPOSE = "measuring utility on public tasks"


def obstacle(family: Family, model: nn.Module) -> str:
    """Why the harness cannot measure `model`; empty where it can."""
    if isinstance(family, CausalLM) and hasattr(model, "config"):
        return ""
    return f"lm-eval measures language models of transformers, not a {type(model).__name__} of family {family.name}"


def known_tasks(tasks: Sequence[str], folder: Path | None = None) -> Any:
    """The harness's catalog of tasks, with those in `folder`; refuses `tasks` that are not in it."""
    if folder is not None and not folder.is_dir():
        raise BadInput(f"lm_eval: no folder '{folder}' with tasks")
    catalog = load_extra("lm_eval.tasks", "lm-eval", PURPOSE)
    known = catalog.TaskManager(include_path=None if folder is None else str(folder))
    for task in tasks:
        if task not in known.all_tasks:
            raise BadInput(f"lm-eval has no task '{task}'{did_you_mean(task, _near(task, known.all_tasks))}")
    return known


def task_scores(
    family: Family,
    model: nn.Module,
    tasks: Sequence[str],
    *,
    task_folder: Path | None = None,
    batch_size: int = 16,
    limit: int | None = None,
    device: str = "cpu",
) -> list[Score]:
    """Scores of `model` on tasks of the `lm-eval` harness (Gao et al., doi:10.5281/zenodo.12608602).

    One score per task and metric: `lm-eval-acc` on the split `arc_easy`, say, in the metric's own unit and direction; a
    filter other than ``none`` follows the name. The interval is value ± 1.96 standard errors, as the harness estimates
    them. Few-shot examples, prompts and datasets are those of the task; data that is not here is taken from the hub.

    Args:
        family: a language model's, for its tokenizer and context length.
        model: a `transformers` model, which is not changed.
        tasks: names as in ``lm-eval ls tasks``, groups included.
        task_folder: folder with further tasks in YAML.
        batch_size: sequences in one forward pass.
        limit: only the first so many rows of each task.
        device: where the model runs.

    Raises:
        BadInput: not a language model of `transformers`, or no such task.
        Missing: the extra ``lm-eval`` is not installed.
    """
    reason = obstacle(family, model)
    if reason or not isinstance(family, CausalLM):
        raise BadInput(reason)
    known = known_tasks(tasks, task_folder)
    harness = load_extra("lm_eval", "lm-eval", PURPOSE)
    wrapper = load_extra("lm_eval.models.huggingface", "lm-eval", PURPOSE)
    was_training, dice = model.training, random.getstate()
    wrapped = wrapper.HFLM(
        pretrained=model.to(device).eval(),
        # The harness gives a tokenizer without padding one; the family's must stay as it is.
        tokenizer=copy.deepcopy(family.tokenizer),
        max_length=family.max_length,
        batch_size=batch_size,
        device=device,
        prefix_token_id=_first_token(family),
    )
    try:
        # Without seeds the harness leaves numpy's and torch's random state alone; few-shot examples have their own.
        found = harness.simple_evaluate(
            model=wrapped, tasks=list(tasks), task_manager=known, limit=limit, log_samples=False,
            random_seed=None, numpy_random_seed=None, torch_random_seed=None, bootstrap_iters=1000,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExpungeError(f"lm-eval could not run {', '.join(tasks)}: {reason}") from error
    finally:
        model.train(was_training)
        random.setstate(dice)
    return [score for task in sorted(found["results"]) for score in _scores(task, found)]


def _near(task: str, known: Sequence[str]) -> list[str]:
    """Names that begin like `task`: all of them would fill a screen."""
    return [name for name in known if name[:2] == task[:2].lower()]


def _first_token(family: CausalLM) -> int:
    """What the harness puts before a text that has nothing before it."""
    tokenizer = family.tokenizer
    return next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), family.pad)


def _scores(task: str, found: dict[str, Any]) -> Iterator[Score]:
    values = found["results"][task]
    n = found.get("n-samples", {}).get(task, {}).get("effective")
    for key, value in values.items():
        name, _, filtered = key.partition(",")
        if not isinstance(value, (int, float)) or not filtered or name.endswith("_stderr"):
            continue
        better = found.get("higher_is_better", {}).get(task, {}).get(name, True)
        direction: Direction = "lower" if better is False else "higher"
        facts: dict[str, Any] = {
            "metric": f"lm-eval-{name}" + ("" if filtered == "none" else f"-{filtered}"),
            "split": task, "unit": "share" if name.startswith(("acc", "exact_match")) else name, "direction": direction,
        }  # fmt: skip
        if not math.isfinite(value):
            yield Score(**facts, status="undefined", reason=f"the value is {value}")
            continue
        yield Score(
            **facts,
            value=float(value),
            n=n,
            interval=_interval(value, values.get(f"{name}_stderr,{filtered}")),
        )


def _interval(value: float, error: Any) -> Interval | None:
    if not isinstance(error, (int, float)) or not math.isfinite(error):
        return None
    half = 1.959964 * error
    return Interval(low=value - half, high=value + half, method="normal, by the harness's standard error")
