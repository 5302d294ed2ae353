"""Object storage: the one way to buckets, for models and for stores alike.

Addresses are s3://bucket/key, gs://bucket/key and az://container/key. Endpoint, region and
credentials come from the variables that every tool of the provider reads (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME, ...).
"""

import os
from functools import cache

from obstore.store import ObjectStore, from_url

SCHEMES = ("s3", "gs", "az")


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


@cache
def bucket(address: str) -> ObjectStore:
    """The bucket of `s3://bucket`; opened once in a process, requests retried by obstore."""
    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    return from_url(address, client_options={"allow_http": plain})
