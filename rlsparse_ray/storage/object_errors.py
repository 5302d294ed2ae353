"""What object storage says, in one line that names the object and the fix."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore.exceptions import BaseError

from rlsparse_ray.errors import StoreError

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
}
_ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "the proxy settings", "az": "AZURE_STORAGE_ENDPOINT"}
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_OTHER_REGION = (
    *("incorrectly configured region", "AuthorizationHeaderMalformed", "PermanentRedirect"),
    *("IllegalLocationConstraint", "code: 301 "),
)
_KEEPS_FAILING = ("code: 408 ", "code: 429 ", "code: 5")
_NO_ANSWER = ("",)
_FIXES = (
    (_NO_BUCKET, "create the bucket or correct the address"),
    (("ExpiredToken", "RequestTimeTooSkewed"), "renew the credentials ({credentials})"),
    (_OTHER_REGION, "set AWS_REGION to the region of the bucket"),
    # without credentials obstore asks the cloud's own machines for some
    (
        ("169.254.169.254", "metadata.google", "token request", "MissingAccount"),
        "no credentials found: set {credentials}",
    ),
    (("code: 401 ", "code: 403 "), "check the credentials ({credentials}) and what they allow"),
    (("code: 404 ",), "it is gone: run rlsparse verify"),
    (("code: 412 ",), "it was replaced while it was being read: run again"),
    (
        _KEEPS_FAILING,
        "the service keeps failing: run again later; what is finished is kept",
    ),
    # a HEAD has no body that would say more
    (("code: 4",), "the service refuses it: check the address{region} and {credentials}"),
    (_NO_ANSWER, "check the network and {endpoint}, then run again; what is finished is kept"),
)
"""What obstore's message contains, and then the fix: the first that fits."""

_SAID = re.compile(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", re.DOTALL)


@contextmanager
def object_errors(address: str) -> Iterator[None]:
    """Turn what obstore raises within the block into a StoreError about `address`."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        raise StoreError(f"store {address}: {said(error)}: {fix(address, error)}") from error


def is_missing(error: FileNotFoundError) -> bool:
    """Whether the object is missing, and not its whole bucket."""
    return not any(word in str(error) for word in _NO_BUCKET)


def said(error: Exception) -> str:
    """The service's own words, without its XML and without obstore's debug lines."""
    found = _SAID.search(str(error))
    if found:
        return f"{found[1]}: {found[2].strip('. ')}"
    return str(error).splitlines()[0].rstrip(": ")


def fix(address: str, error: Exception) -> str:
    """What the user can do about it: names the variables that have to be set."""
    scheme = address.partition("://")[0]
    return dict(_FIXES)[_words(error)].format(
        credentials=_CREDENTIALS[scheme],
        endpoint=_ENDPOINTS[scheme],
        region=", AWS_REGION" if scheme == "s3" else "",
    )


def _words(error: Exception) -> tuple[str, ...]:
    return next(words for words, _ in _FIXES if any(word in str(error) for word in words))
