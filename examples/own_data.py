"""Forget one customer's rows from a torch module that was trained on a CSV file.

Run: python examples/own_data.py
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import nn

import expunge

FACTORY = """from torch import nn
scorer = lambda: nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
"""


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    paid = rng.integers(2, size=400)
    table = pd.DataFrame({"amount": rng.normal(2.0 * paid), "delay": rng.normal(-1.0 * paid)})
    table["paid"], table["customer"] = np.where(paid, "yes", "no"), [f"c{i % 20}" for i in range(400)]
    table.to_csv(folder / "orders.csv", index=False)
    (folder / "scorer.py").write_text(FACTORY)

    # Your own training code, whatever it is. Classes are numbered in sorted order: no = 0, yes = 1.
    x = torch.tensor(table[["amount", "delay"]].to_numpy(np.float32))
    y = torch.tensor((table["paid"] == "yes").to_numpy(np.int64))
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    save_file(model.state_dict(), folder / "scorer.safetensors")

    problem = expunge.ProblemSpec(
        model={"factory": "./scorer.py:scorer", "weights": "scorer.safetensors"},
        data="orders.csv", family="classifier", target="paid", forget="user:customer=c7",
    ).build(folder)  # fmt: skip
    unlearned = expunge.forget(problem, "npo", beta=0.5, epochs=10, lr=0.1).model
    scores = expunge.audit(problem, {"npo": unlearned}, metrics=["accuracy", "mean-loss"])
    before, after = (judged.score("mean-loss", "forget").value for judged in scores.judged)
    print(f"{problem.scope}: {len(problem.forget_rows)} rows, loss {before:.4f} before, {after:.4f} after")

    # We can also check this by hand: the customer's rows straight from the table, through the new weights.
    mine = torch.tensor((table["customer"] == "c7").to_numpy())
    by_hand = nn.functional.cross_entropy(unlearned(x[mine]), y[mine]).item()
    print(f"by hand: {by_hand:.4f} after")
    assert abs(after - by_hand) < 1e-5


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
