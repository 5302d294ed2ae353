"""Questions to the hub: asked again while it fails for a moment, and explained when it says no."""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.hub_address import HubAddress
from rlsparse_ray.weights.hub_patience import Patience, is_transient
from rlsparse_ray.weights.hub_settings import endpoint

_T = TypeVar("_T")

_HTTP_ERROR = cast(type[Exception], HfHubHTTPError.__bases__[0])
"""Base of connection errors too: httpx.HTTPError in huggingface_hub 1, httpx2.HTTPError in 2."""

_LOG_IN = "`hf auth login` or set HF_TOKEN"


def ask_hub(question: Callable[[], _T], about: HubAddress) -> _T:
    """Call something of huggingface_hub until it answers.

    Args:
        question: the call; made again after 429, 5xx and lost connections.
        about: what is asked for.

    Raises:
        CheckpointError: the hub refuses, or does not answer in time; the message says what to do.
    """
    patience = Patience(str(about))
    while True:
        try:
            return question()
        except HfHubHTTPError as error:
            status = error.response.status_code
            if not is_transient(status):
                raise explain(error, about) from error
            patience.wait(f"{endpoint()} answers {status}", asked_pause(error.response.headers))
        except (_HTTP_ERROR, LocalEntryNotFoundError) as error:
            # the second is how a download says that it got no answer
            cause = error.__cause__ or error
            patience.wait(
                f"{endpoint()} cannot be reached ({type(cause).__name__}: {cause}); check the "
                "network and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use what is in the local cache"
            )
        except (HFValidationError, EntryNotFoundError) as error:
            raise explain(error, about) from error


def asked_pause(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait, if it does: Retry-After, or the hub's rate limit.

    >>> asked_pause({"retry-after": "2"}), asked_pause({"ratelimit": '"api";r=0;t=55'})
    (2.0, 55.0)
    """
    lower = {name.lower(): value for name, value in headers.items()}
    said = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*", lower.get("retry-after", ""))
    said = said or re.search(r"\br=0\b.*\bt=(\d+)", lower.get("ratelimit", ""))
    return float(said[1]) if said else None


def explain(error: Exception, about: HubAddress) -> CheckpointError:
    """What a refusal means, and what to do about it."""
    return CheckpointError(f"{about}: {_reason(error, about)}")


def _reason(error: Exception, about: HubAddress) -> str:
    match error:
        case GatedRepoError():
            reason = _gated(about)
        case RevisionNotFoundError():
            reason = f"no revision {about.revision} there: {_known_revisions(about)}"
        case EntryNotFoundError():
            reason = "gone from the repository, though it was listed: plan again"
        case HfHubHTTPError() if "Invalid credentials" in f"{error.server_message} {error}":
            reason = f"the hub refuses your token: {_LOG_IN} anew"
        case RepositoryNotFoundError() if get_token():
            reason = "no such repository, or a private one that your token may not read"
        case RepositoryNotFoundError():
            reason = (
                f"no such repository, or a private one: check the name; if it is private, {_LOG_IN}"
            )
        case HfHubHTTPError():
            status, said = error.response.status_code, error.server_message or error
            reason = f"{endpoint()} answers {status} ({said}): see {_page(about)}"
        case _:
            reason = f"{about.repository!r} is no name of a repository: write hf://org/repo"
    return reason


def _page(about: HubAddress) -> str:
    return f"{endpoint()}/{about.repository}"


def _gated(about: HubAddress) -> str:
    if get_token():
        return (
            f"gated, and your token has no access: open {_page(about)} with that account and "
            "accept the terms, which may take time to be granted; a fine-grained token also needs "
            "the right to read gated repositories"
        )
    return f"gated: open {_page(about)}, accept the terms, then {_LOG_IN}"


def _known_revisions(about: HubAddress, most: int = 10) -> str:
    try:
        refs = HfApi(endpoint=endpoint()).list_repo_refs(about.repository)
    except _HTTP_ERROR:
        return f"see {_page(about)}"
    names = sorted(ref.name for ref in (*refs.branches, *refs.tags))
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"it has {', '.join(names[:most])}{rest} (or name a commit)"
