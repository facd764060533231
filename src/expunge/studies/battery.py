"""A battery of attacks on models that exist: one pass of evidence per model, each attack once, each result kept.

With a folder, what every model says and what every attack achieves is stored under the fingerprint of all that could change
it: the model, the target, the data, the attack with its parameters, the code, the seed, the device. The same battery again
computes nothing; one that was interrupted goes on with the attack it was at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.attacks import Attack, Scene, fitting_attacks
from expunge.attacks.shadows import ShadowModels
from expunge.errors import BadInput
from expunge.evidence import Evidence
from expunge.families.models import architecture_of, fingerprint
from expunge.files import canonical_json, digest, folder_atomic, read_json, write_atomic
from expunge.methods.base import Method, Workplace
from expunge.metrics.base import Metric
from expunge.problem import Problem
from expunge.record import Score
from expunge.studies.jobs import TRANSCRIPTS, write_transcripts
from expunge.studies.sources import code_digest, source_digest
from expunge.studies.spec import find_attack

Progress = Callable[[str], None]


class Battery:
    """The attacks of an audit, and what they share: evidence of each model, shadow models.

    Attributes:
        computed: how many looks at a model and attacks were made here; the others were found in the folder.
    """

    def __init__(
        self,
        problem: Problem,
        attacks: str | Sequence[str | Attack],
        device: str = "cpu",
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.problem, self.device, self.folder = problem, device, folder
        if isinstance(attacks, str) and (attacks == "standard" or attacks == "all"):
            self.attacks = fitting_attacks(problem, attacks)
        else:
            named = [attacks] if isinstance(attacks, str) else attacks
            self.attacks = [find_attack(a)() if isinstance(a, str) else a for a in named]
        names = [a.name for a in self.attacks]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise BadInput(
                f"attack '{twice}' is named twice, so its scores could not be told apart; make two audits"
            )
        self.computed = 0
        self._names: dict[int, str] = {}
        self._say = progress or (lambda _: None)
        self._shadows = ShadowModels(problem, Workplace(device=device))
        self._target = None if problem.model is None else identity(problem.model, problem)

    def scene(
        self,
        model: nn.Module,
        seed: int = 0,
        retrained: Sequence[nn.Module] = (),
        underneath: nn.Module | None = None,
    ) -> Scene:
        """What attackers of `model` work with; its evidence is collected once and read by metrics and attacks alike."""
        return Scene(self.problem, model, Workplace(seed, self.device), (), retrained, underneath)

    def look(self, scene: Scene, wanted: Mapping[str, set[str]], model_id: str) -> dict[str, Evidence]:
        """Evidence of the scene's model for the `wanted` quantities by split, from the folder where it is there."""
        listed = {split: sorted(found) for split, found in sorted(wanted.items())}
        code = code_digest("families", "evidence", "problem.py")
        key = digest(
            {
                "model": model_id,
                "problem": self.problem.fingerprint,
                "quantities": listed,
                "code": code,
                "device": self.device,
            }
        )
        room = None if self.folder is None else self.folder / "evidence" / key
        if room is not None and room.is_dir():
            for split in listed:
                scene.known(split, Evidence.read(room / f"{split}.parquet"))
        found = {split: scene.evidence(split, quantities) for split, quantities in listed.items()}
        if room is None or not room.is_dir():
            self.computed += 1
            if room is not None:
                with folder_atomic(room) as folder:
                    for split, evidence in found.items():
                        evidence.write(folder / f"{split}.parquet")
        return found

    def scores(
        self, metrics: Sequence[Metric], model_ids: Sequence[Any], compute: Callable[[], list[Score]]
    ) -> list[Score]:
        """What `compute` says of evidence by `metrics`, from the folder where it is there.

        `model_ids` are those of all models whose evidence is read, by role.
        """
        if self.folder is None:
            return compute()
        key = digest(
            {
                "metrics": [(m.name, source_digest(m.function)) for m in metrics], "models": model_ids,
                "problem": self.problem.fingerprint, "device": self.device,
                "code": code_digest("families", "evidence", "metrics", "problem.py", "stats/intervals.py"),
            }
        )  # fmt: skip
        file = self.folder / "scores" / f"{key}.json"
        if not file.is_file():
            write_atomic(file, canonical_json([s.model_dump(mode="json") for s in compute()]))
        return [Score.model_validate(s) for s in read_json(file)]

    def attack(
        self, scene: Scene, name: str, model_id: str, *, untouched: bool, made_by: Method | None
    ) -> list[Score]:  # fmt: skip
        """What every attack achieves on the scene's model, one after another; one that fails leaves its reason.

        Args:
            scene: the model's.
            name: what progress calls it.
            model_id: by `identity`.
            untouched: nothing was unlearned from it.
            made_by: the method that made it, where that is known.
        """
        scores: list[Score] = []
        for number, attack in enumerate(self.attacks, 1):
            obstacles = attack.obstacles(self.problem)
            if obstacles:
                scores += attack.unanswered("not_applicable", "; ".join(obstacles))
                continue
            room = self._room(attack, scene, model_id, untouched, made_by)
            if room is not None and (room / "scores.json").is_file():
                scores += [Score.model_validate(s) for s in read_json(room / "scores.json")]
                continue
            started = time.perf_counter()
            self.computed += 1
            try:
                found, transcripts = self._run(attack, scene, untouched, made_by)
            except Exception as error:  # an attack that breaks must not take the others with it
                reason = f"{type(error).__name__}: {error}".strip()
                self._say(f"{name}: {attack.name} ({number} of {len(self.attacks)}) failed: {reason}")
                scores += attack.unanswered("failed", reason)
                continue
            self._say(
                f"{name}: {attack.name} ({number} of {len(self.attacks)}), {time.perf_counter() - started:.1f} s"
            )
            if room is not None:
                with folder_atomic(room) as folder:
                    (folder / "scores.json").write_text(
                        canonical_json([s.model_dump(mode="json") for s in found])
                    )
                    if transcripts:
                        write_transcripts(folder / TRANSCRIPTS, transcripts)
            scores += found
        return scores

    def _run(
        self, attack: Attack, scene: Scene, untouched: bool, made_by: Method | None
    ) -> tuple[list[Score], list[dict[str, Any]]]:
        shadows = (
            self._shadows.unlearned(attack, made_by) if attack.unlearns_shadows and made_by is not None
            else self._shadows.trained(attack)
        )  # fmt: skip
        if untouched:
            shadows = [replace(shadow, after=shadow.before) for shadow in shadows]
        # The evidence is shared, what was asked and answered is each attack's own.
        mine = replace(scene, shadows=shadows, transcripts=[])
        return attack.attack(mine), mine.transcripts

    def _room(
        self, attack: Attack, scene: Scene, model_id: str, untouched: bool, made_by: Method | None
    ) -> Path | None:  # fmt: skip
        if self.folder is None:
            return None
        shadows = None
        if attack.shadow_models():
            shadows = [attack.shadow_models(), untouched, repr(made_by) if attack.unlearns_shadows else None]
        beneath = scene.underneath
        key = digest(
            {
                "retrained": [self._name(m) for m in scene.retrained] if attack.compares else None,
                "underneath": None if beneath is None else self._name(beneath),
                "attack": attack.name, "parameters": attack.model_dump(mode="json"), "source": source_digest(type(attack)),
                "model": model_id, "target": self._target, "problem": self.problem.fingerprint, "seed": scene.workplace.seed,
                "shadows": shadows, "device": self.device, "threads": torch.get_num_threads(), "torch": torch.__version__,
                "code": code_digest("families", "evidence", "metrics", "problem.py", "attacks/base.py", "attacks/shadows.py",
                                    "methods/loop.py", "stats/intervals.py"),
            }
        )  # fmt: skip
        return self.folder / "attacks" / key

    def _name(self, model: nn.Module) -> str:
        """`identity`, found once per model."""
        if id(model) not in self._names:
            self._names[id(model)] = identity(model, self.problem)
        return self._names[id(model)]


def identity(model: nn.Module, problem: Problem) -> str:
    """Fingerprint of what a model computes: its weights, and how they are put together where that is known."""
    built = architecture_of(model, problem.architecture)
    kind = type(model)
    return digest([fingerprint(model), f"{kind.__module__}.{kind.__qualname__}", built])
