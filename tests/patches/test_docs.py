"""docs/training.md says how patches are used; it does so in this order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.patches.builders import files_of

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "training.md").read_text().partition("\n## Sparse patches\n")[2]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)


def test_every_block_runs(tmp_path, monkeypatch):
    model, tuned = torch.nn.Linear(40, 30), torch.nn.Linear(40, 30)
    with torch.no_grad():
        tuned.weight.copy_(model.weight)
        tuned.weight[::7] *= 2
    for name, net in (("base", model), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        save_file(net.state_dict(), tmp_path / name / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    commands = [line[2:] for line in "".join(blocks("console")).splitlines()]
    assert [command.split()[:3] for command in commands] == [
        ["rlsparse", "patch", verb] for verb in ("make", "verify", "apply")
    ]
    for command in commands:
        subprocess.run(["bash", "-c", command], check=True, env=os.environ | {"PATH": path})
    assert files_of(tmp_path / "tuned-again") == files_of(tmp_path / "tuned")
    (block,) = blocks("py")
    exec(compile(block, "docs/training.md", "exec"), {"model": model})
    assert torch.equal(model.weight, tuned.weight)
    assert torch.equal(model.bias, tuned.bias)
