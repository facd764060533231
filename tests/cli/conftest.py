"""The command line through its real entry point, and small files of a user."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from expunge.cli import main

MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self, hidden=8):
        super().__init__()
        self.hidden = torch.nn.Linear(2, hidden)
        self.head = torch.nn.Linear(hidden, 2)

    def forward(self, features):
        return self.head(self.hidden(features).relu())

def make(hidden=8):
    return Net(hidden)
"""


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out, parse_constant=lambda c: pytest.fail(f"bare {c} in JSON"))


Run = Callable[..., Result]


@pytest.fixture
def expunge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process and return exit code and output."""

    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["expunge", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return Result(int(caught.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a table, a module with a network, its trained weights."""
    rng = np.random.default_rng(0)
    rows = ["key,user,a,b,label"]
    x, y = [], []
    for i in range(80):
        label = i % 2
        a, b = rng.normal(2 * label - 1), rng.normal()
        x.append([a, b])
        y.append(label)
        rows.append(f"r{i},{'ann' if i % 8 == 0 else 'bob'},{a:.5f},{b:.5f},{label}")
    (tmp_path / "train.csv").write_text("\n".join(rows[:61]) + "\n")
    (tmp_path / "held.csv").write_text("\n".join([rows[0], *rows[61:]]) + "\n")
    (tmp_path / "net.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(MODULE, namespace)
    torch.manual_seed(0)
    net = namespace["make"]()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(net(torch.tensor(x[:60]).float()), torch.tensor(y[:60]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    return tmp_path


OWN = [
    "--model", "./net.py:make", "--weights", "net.safetensors", "--data", "train.csv", "--family", "classifier",
    "--id", "key", "--inputs", "a,b",
]  # fmt: skip
