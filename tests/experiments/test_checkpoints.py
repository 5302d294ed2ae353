"""What training asks of the process it runs in."""

import os
import warnings
from contextlib import suppress

import pytest
import torch

from rlsparse_ray.experiments.checkpoints import QUIET, quiet
from rlsparse_ray.weights.hub_settings import is_offline


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("said", [None, "0"])
@pytest.mark.parametrize("error", [None, KeyError("a step that failed")])
def test_the_process_is_given_back_as_it_was(monkeypatch, two_threads, said, error):
    """A Ray worker that trained goes on to read from the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("TRANSFORMERS_OFFLINE", *QUIET):
        monkeypatch.delenv(name, raising=False)
        if said:
            monkeypatch.setenv(name, said)
    environment, filters = dict(os.environ), list(warnings.filters)
    with suppress(KeyError), quiet():
        assert is_offline() and torch.get_num_threads() == 1
        if error:
            raise error
    assert not is_offline() and torch.get_num_threads() == 2
    assert dict(os.environ) == environment and warnings.filters == filters
