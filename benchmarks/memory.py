"""Peak memory of methods that need a reference model, against fine-tuning. Each runs in a process of its own."""

from __future__ import annotations

import subprocess
import sys

METHODS = {
    "fine-tune": {}, "kl-minimization": {}, "npo": {}, "scrub": {"optimizer": "sgd"}, "bad-teacher": {"optimizer": "sgd"},
}  # fmt: skip


def measure(name: str) -> None:
    """Print the peak resident memory above the start of one run of method `name` on a wide network."""
    import torch

    from expunge.memory import peak_memory
    from expunge.methods import METHODS as KNOWN
    from expunge.methods import Workplace
    from expunge.problem import Problem
    from expunge.studies.runner import _warm_up
    from expunge.testing.problems import _rows, tiny_problem

    torch.set_num_threads(1)
    _warm_up()
    small = tiny_problem("classifier")
    assert small.architecture is not None
    options = {"inputs": 4, "outputs": 3, "hidden": [4096, 4096]}  # 16.8 million weights, 64 MiB
    train = _rows(512, 0, classes=3)
    problem = Problem(
        "wide", small.family, train, tuple(train["id"][:64]), small.holdout, small.probes,
        architecture=small.architecture.replace(options=options), recipe=small.recipe,
    )  # fmt: skip
    problem = problem.with_model(problem.fresh_model(0))
    method = KNOWN[name](epochs=1, batch_size=32, lr=1e-4, **METHODS[name])
    model = problem.fresh_model(0)
    with peak_memory() as peak:
        method.produce(problem, model, Workplace())
    print(peak.bytes)


def main() -> None:
    peaks = {}
    for name in METHODS:
        out = subprocess.run(
            [sys.executable, __file__, name], capture_output=True, text=True, check=True
        ).stdout
        peaks[name] = int(out.strip())
    for name, peak in peaks.items():
        ratio = peak / peaks["fine-tune"]
        print(
            f"{f'peak memory of {name}, 16.8 million weights':<64} ratio {ratio:6.3f}   "
            f"{peak / 2**20:8.1f} MiB   at most 1.10"
        )


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
