"""Faults on a real cluster of three nodes: nothing finished is lost, and the store is the same.

`make drill` faces all of them; here are those that need no root and little time."""

import pytest

from tests.drill.drill import drill
from tests.drill.faults import FAULTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stage(tmp_path_factory, s3_session):
    with pytest.MonkeyPatch.context() as patch:
        for name in [*s3_session.environment, "RLSPARSE_RETRY_SECONDS"]:
            patch.setenv(name, "")
        with drill(tmp_path_factory.mktemp("drill")) as made:
            yield made


@pytest.mark.parametrize("name", ["worker killed", "node killed", "driver killed"])
def test_what_is_finished_is_not_done_again(stage, name):
    result = stage.face(FAULTS[name])
    assert result.finished > 0
    assert result.finished_again == 0
    # what was in flight, on two nodes, and what finished while the fault struck
    assert result.redone <= result.lost + 2
