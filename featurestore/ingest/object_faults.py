"""What obstore says went wrong, as one error that says what to do.

Its errors have few kinds; which one it is stands in their text: a status, the store's own code,
the kind of a broken connection. Their text is long and is left to ``__cause__``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from featurestore.errors import SourceError


class _Provider(NamedTuple):
    """What a store's users call things."""

    bucket: str
    credentials: str
    endpoint: str


_S3 = _Provider(
    "bucket",
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN where there is one), or "
    "AWS_SKIP_SIGNATURE=true for a public bucket",
    "AWS_ENDPOINT_URL and AWS_REGION",
)
_GOOGLE = _Provider(
    "bucket",
    "GOOGLE_APPLICATION_CREDENTIALS, a file with a key, or GOOGLE_SKIP_SIGNATURE=true for a public "
    "bucket",
    "the network",
)
_AZURE = _Provider(
    "container",
    "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_ACCOUNT_NAME",
)

_ASKING_FOR_CREDENTIALS = re.compile(
    r"token request|/latest/(?:api/token|meta-data)|computeMetadata|AssumeRole|CredentialProvider"
)
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|FilesystemNotFound|bucket does not exist")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_KIND = re.compile(r"HttpError \{\s*kind: (\w+)")

_KINDS = {
    "Connect": "cannot be reached",
    "Timeout": "did not answer in time",
    "Interrupted": "broke off",
    "Request": "broke off",
    "Decode": "broke off",
}


def fault(name: str, error: Exception) -> SourceError:
    """The error to raise for one of obstore's, about what is called ``name``."""
    return SourceError(f"{name}: {_said(_provider(name), error)}")


def _provider(name: str) -> _Provider:
    scheme = name.partition("://")[0].lower()
    if scheme in ("s3", "s3a"):
        return _S3
    return _GOOGLE if scheme in ("gs", "gcs") else _AZURE


def _said(provider: _Provider, error: Exception) -> str:
    text = str(error)
    kind = type(error).__name__
    if kind == "PreconditionError":
        return "the object was changed while it was read. Load it again."
    if _ASKING_FOR_CREDENTIALS.search(text):
        return (
            f"no credentials were found for it, and no service of the machine gives any. Set "
            f"{provider.credentials}."
        )
    if "MissingAccount" in text:
        return "the storage account is not known: set AZURE_STORAGE_ACCOUNT_NAME."
    if _NO_BUCKET.search(text):
        return f"there is no such {provider.bucket}: check its name and {provider.endpoint}."
    if isinstance(error, FileNotFoundError):
        return "there is no such object."
    if "BareRedirect" in text or "PermanentRedirect" in text:
        return f"the {provider.bucket} lies in another region: set {provider.endpoint}."
    return (
        _by_status(provider, text) or _by_connection(provider, text) or _other(provider, kind, text)
    )


def _by_status(provider: _Provider, text: str) -> str | None:
    found = _STATUS.search(text)
    if found is None:
        return None
    code = _CODE.search(text)
    answer = f"the store answers {found[1]} {code[1] if code else ''}".rstrip()
    if found[1] in ("401", "403"):
        return (
            f"access is refused ({answer}). Check {provider.credentials}, and that they may read "
            f"and list the {provider.bucket}."
        )
    if found[1] == "416":
        return f"{answer}: the object was changed while it was read. Load it again."
    if found[1] == "429" or found[1].startswith("5"):
        return f"{answer}, at the last of several tries. Try again later."
    return f"{answer}. Check {provider.credentials}; {provider.endpoint}."


def _by_connection(provider: _Provider, text: str) -> str | None:
    found = _KIND.search(text)
    if found is None or found[1] not in _KINDS:
        return None
    return (
        f"the store {_KINDS[found[1]]}, at the last of several tries. Check {provider.endpoint}, "
        f"or try again later."
    )


def _other(provider: _Provider, kind: str, text: str) -> str:
    if kind == "InvalidPathError":
        return "an object whose name has empty parts, '.' or '..' cannot be read."
    if "NotPartial" in text:
        return "the store gives no byte ranges: download the object first."
    if kind == "ValueError" or "UrlNotRecognised" in text or "Unrecognised" in text:
        return f"this is no URL of an object store ({_first(text)})."
    if "Unable to" in text:  # read a file with credentials, mostly
        return f"{_first(text)}. Check {provider.credentials}."
    return f"{_first(text) or kind}."


def _first(text: str) -> str:
    """The first line, without addresses, which may hold secrets."""
    first = re.sub(r"^Generic \w+ error: ", "", text.partition("\n")[0])
    return re.sub(r"\w+://\S+", "…", first).rstrip(". ")
