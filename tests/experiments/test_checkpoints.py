"""What training asks of the process it runs in."""

import os
import random
import warnings
from contextlib import suppress

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import utils as hub_utils
from transformers import set_seed
from transformers.utils import logging

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


def drawn():
    """The next number of every generator that a run seeds."""
    return random.random(), float(np.random.random()), float(torch.rand(()))


@pytest.mark.parametrize("error", [None, KeyError("a step that failed")])
def test_the_callers_random_numbers_go_on(error):
    set_seed(7)
    expected = drawn()
    set_seed(7)
    with suppress(KeyError), quiet():
        set_seed(0)
        drawn()
        if error:
            raise error
    assert drawn() == expected


@pytest.mark.parametrize("shown", [True, False])
def test_the_libraries_speak_as_before(shown, request):
    switches = (
        (logging.enable_progress_bar, logging.disable_progress_bar),
        (hub_utils.enable_progress_bars, hub_utils.disable_progress_bars),
        (datasets.enable_progress_bars, datasets.disable_progress_bars),
    )

    def said():
        hidden = hub_utils.are_progress_bars_disabled(), datasets.are_progress_bars_disabled()
        return logging.get_verbosity(), logging.is_progress_bar_enabled(), *hidden

    request.addfinalizer(switches[0][0])
    request.addfinalizer(switches[2][0])
    for show, hide in switches:
        (show if shown else hide)()
    before = said()
    assert before[1:] == (shown, not shown, not shown)
    with quiet():
        assert said() == (logging.ERROR, False, True, True)
    assert said() == before
