"""docs/training.md does what it says: its code runs as it stands, its claims are the software's."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rlsparse_ray.training import Subnetwork
from tests.builders import extract_directly, write_corpus
from tests.training import tiny
from tests.training.weights import assert_only_masked_changed, weights_of

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def write_pair(folder: Path) -> None:
    """A base, a model tuned from it, and the store that knows what was changed."""
    base = tiny.write_base(folder / "base")
    tuned = tiny.load(base, "SFT", torch.bfloat16)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter[torch.rand(parameter.shape) < 0.1] *= 1.5
    tuned.save_pretrained(folder / "tuned")
    pairs = [{"name": "grpo-seed0", "base": "base", "tuned": "tuned"}]
    extract_directly(write_corpus(folder / "corpus.yaml", pairs), folder / "store")


def given(folder: Path) -> dict[str, Any]:
    """What the page takes for granted: two models at their base, data and settings."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    batches = [tokenizer([text], return_tensors="pt") for text in ("1+2=3", "2+2=4")]
    for batch in batches:
        batch.pop("token_type_ids", None)
    rows = [{"prompt": "1+2=", "chosen": "3", "rejected": "4"}] * 8
    return {
        "torch": torch,
        "model": tiny.load(folder / "base", "SFT", torch.float32),
        "policy": tiny.load(folder / "base", "DPO", torch.float32),
        "batches": batches,
        "settings": {**tiny.SETTINGS, "max_steps": 5, "output_dir": "out"},
        "preferences": Dataset.from_list(rows),
        "tokenizer": tokenizer,
    }


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    """The names that the page's code leaves, and the weights that it began with."""
    tiny.quiet()
    folder = tmp_path_factory.mktemp("page")
    write_pair(folder)
    with tiny.offline(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names = given(folder)
        before = weights_of(names["model"])
        for block in BLOCKS:
            exec(compile(block, "docs/training.md", "exec"), names)
    return names, before


def masks_for(sub: Subnetwork, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(sub[name.removeprefix("model.")].flags())
        for name, _ in model.named_parameters()
    }


@pytest.mark.parametrize("which", ["model", "policy"])
def test_the_pages_code_trains_the_subnetwork(ran: Any, which: str) -> None:
    names, before = ran
    masks = masks_for(names["sub"], names[which])
    assert_only_masked_changed(before, weights_of(names[which]), masks)


def test_the_control_and_the_complement(ran: Any) -> None:
    names, _ = ran
    sub, control, rest = names["sub"], names["control"], names["rest"]
    assert 0.05 < sub.density < 0.15
    assert [control[n].size for n in sub] == [sub[n].size for n in sub]
    assert sub.size + rest.size == sub.numel == names["model"].num_parameters()


def test_memory_is_as_the_table_says(ran: Any) -> None:
    names, _ = ran
    held = names["optimizer"].state_bytes()
    assert (held.state, held.masters, held.indices) == (
        8 * names["sub"].size,
        0,
        4 * names["sub"].size,
    )


def test_trl_has_no_ppo() -> None:
    import trl
    import trl.experimental

    modules = {module.name for module in pkgutil.iter_modules(trl.experimental.__path__)}
    assert {"cpo", "orpo"} <= modules
    assert not [name for name in {*dir(trl), *modules} if "PPO" in name or name == "ppo"]


def test_every_trainer_that_the_page_names_is_tested() -> None:
    section = PAGE.split("## transformers and TRL")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w*)Trainer`", section))
    assert named == ({*tiny.KINDS} - {"Trainer", "SimPO"}) | {"", "CPO"}
