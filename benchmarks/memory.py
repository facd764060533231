"""Peak memory of methods that need a reference model, against fine-tuning. Each runs in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

METHODS = {
    "fine-tune": {}, "kl-minimization": {}, "npo": {}, "scrub": {"optimizer": "sgd"}, "bad-teacher": {"optimizer": "sgd"},
}  # fmt: skip


def measure(name: str) -> None:
    """Print the peak resident memory above the start of one run of method `name` on a large network."""
    import torch

    from expunge.memory import peak_memory
    from expunge.methods import METHODS as KNOWN
    from expunge.methods import Workplace
    from expunge.problem import Problem
    from expunge.studies.runner import warm_up
    from expunge.testing.problems import _rows, tiny_problem

    torch.set_num_threads(1)
    warm_up()
    small = tiny_problem("classifier")
    assert small.architecture is not None
    # 16.8 million weights, 64 MiB, in 16 layers. One backward pass through two forward passes holds two gradients of one
    # layer at a time, so that a network that is a single huge layer would look worse than networks are.
    options = {"inputs": 4, "outputs": 3, "hidden": [1024] * 17}
    train = _rows(512, 0, classes=3)
    problem = Problem(
        "large", small.family, train, tuple(train["id"][:64]), small.holdout, small.probes,
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
        # Every large tensor gets pages of its own, which go back when it is freed: the peak is then that of live tensors,
        # not of the C allocator's fragmentation.
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        command = [sys.executable, __file__, name]
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
        peaks[name] = int(out.strip())
    for name, peak in peaks.items():
        ratio = peak / peaks["fine-tune"]
        print(
            f"{f'peak memory of {name}, 16.8 million weights':<64} ratio {ratio:6.3f}   "
            f"{peak / 2**20:8.1f} MiB   at most 1.10"
        )


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
