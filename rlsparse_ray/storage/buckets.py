"""Object storage: the one way to buckets, for models and for stores alike.

Addresses are s3://bucket/key, gs://bucket/key and az://container/key. Endpoint, region and
credentials come from the variables that every tool of the provider reads (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME, ...).
"""

import os
import re
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

from obstore.store import ObjectStore, from_url

from rlsparse_ray.storage.retry import LONGEST_WAIT, retry_seconds

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

SCHEMES = ("s3", "gs", "az")

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def is_object(address: str) -> bool:
    """Whether an address names something in object storage.

    >>> is_object("s3://masks/store"), is_object("/data/store")
    (True, False)
    """
    scheme, found, _ = address.partition("://")
    return bool(found) and scheme in SCHEMES


def split(address: str) -> tuple[str, str]:
    """The bucket's address and the key.

    >>> split("s3://masks/store/store.json")
    ('s3://masks', 'store/store.json')
    """
    scheme, _, rest = address.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key.strip("/")


def flaw(address: str) -> str:
    """Why something cannot be an address in object storage, and what to do; empty if it can.

    >>> flaw("s3://masks/store"), flaw("s3://masks/a//b")[:33]
    ('', "'' is no part of a key: correct t")
    """
    place, key = split(address)
    name = place.partition("://")[2]
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
        return f"{name!r} is no name of a bucket: correct the address"
    for part in key.split("/") if key else ():
        # keys are no paths: nothing resolves these, and obstore refuses them
        if part in ("", ".", "..") or not part.isprintable():
            return f"{part!r} is no part of a key: correct the address"
    return ""


@cache
def bucket(address: str) -> ObjectStore:
    """The bucket of `s3://bucket`; opened once in a process.

    obstore asks again where the service answers 408, 429 or 5xx, or the connection breaks, and
    goes on with a body at the byte where it broke, as `rlsparse_ray.storage.retry` says how long.
    """
    client: ClientConfig = {
        # a chunk may take long on a thin line; what is over is a line on which nothing comes
        "timeout": timedelta(minutes=10),
        "read_timeout": timedelta(seconds=30),
    }
    plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
    if plain or os.environ.get("GOOGLE_ALLOW_HTTP") == "true":
        client["allow_http"] = True
    retry: RetryConfig = {
        # only the time counts
        "max_retries": 1000,
        "retry_timeout": timedelta(seconds=retry_seconds()),
        "backoff": {"max_backoff": timedelta(seconds=LONGEST_WAIT)},
    }
    return from_url(address, client_options=client, retry_config=retry)
