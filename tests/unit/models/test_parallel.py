"""Two processes take the step that one would take over both of their batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from models import parallel

PROGRAM = """
import sys, torch
from models import parallel
parallel.join()
weight = torch.nn.Parameter(torch.zeros(3))
(weight * float(parallel.rank() + 1)).sum().backward()
parallel.average_gradients([weight, torch.nn.Parameter(torch.zeros(1))])
torch.save(weight.grad, f"{sys.argv[1]}/{parallel.rank()}.pt")
parallel.leave()
"""


def test_gradients_are_averaged_over_the_processes(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(tmp_path / "program.py"), str(tmp_path)]
    root = Path(__file__).parents[3]
    subprocess.run(command, check=True, capture_output=True, env=environment(root), timeout=100)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt").tolist() == [1.5, 1.5, 1.5]


def environment(root: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


def test_one_process_is_left_alone() -> None:
    weight = nn.Parameter(torch.zeros(2))
    (3 * weight).sum().backward()  # type: ignore[no-untyped-call]
    parallel.join()
    parallel.average_gradients([weight])
    parallel.leave()
    assert parallel.rank() == 0
    assert weight.grad is not None
    assert weight.grad.tolist() == [3, 3]
