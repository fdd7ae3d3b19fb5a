"""Who is signed in to the tracking server, and what its refusals mean.

MLflow reports a missing sign-in, a missing permission and an untrusted certificate by the exception that also reports a
missing model. So whoever catches one checks it here before saying what it means.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import mlflow
from mlflow.exceptions import MlflowException

from catdog_pyfunc import internals
from catdog_pyfunc.errors import AccessDenied, CatDogError

_STATUS = re.compile(r"error code (401|403) != 200|\b(401|403) Client Error")  # of MLflow's calls, and of its artifacts
_STATUSES = {"UNAUTHENTICATED": "401", "CUSTOMER_UNAUTHORIZED": "401", "PERMISSION_DENIED": "403"}
_OPERATION = re.compile(r"endpoint /api/[\d.]+/mlflow/([\w/-]+)|for url: \S+/(mlflow-artifacts)/")


def signed_in_user() -> str | None:
    """Get the name under which the tracking server knows whoever runs this.

    Returns:
        The name; None if the tracking store is no server, or one that asks nobody who they are.

    Raises:
        AccessDenied: The server requires a sign-in, or its certificate is not trusted.
        MlflowException: The server cannot be reached.
    """
    uri = mlflow.get_tracking_uri()
    return _signed_in_user(uri, internals.user_name()) if _is_server(uri) else None


@functools.lru_cache(maxsize=8)
def _signed_in_user(uri: str, _user_name: str | None) -> str | None:
    try:  # without retries: MLflow would try a certificate that is not trusted for minutes
        return internals.current_user(uri, max_retries=0)
    except MlflowException as failure:
        check(failure)
    with explained():
        return internals.current_user(uri)


def check(error: BaseException) -> None:
    """Check what an error means, before it is taken to mean that something does not exist.

    Args:
        error: Whatever MLflow has raised.

    Raises:
        AccessDenied: The tracking server has refused, or is not trusted.
    """
    uri, text = mlflow.get_tracking_uri(), str(error)
    code = getattr(error, "error_code", None)
    if not _is_server(uri) or (code is None and str(urlsplit(uri).hostname) not in text):
        return  # not from the tracking server
    if "SSLError" in text:
        raise AccessDenied(
            f"the certificate of {uri} is not trusted here: set MLFLOW_TRACKING_SERVER_CERT_PATH to a file with that of the "
            "authority that issued it"
        ) from None
    found = _STATUS.search(text)
    status = _STATUSES.get(str(code)) or (found and (found[1] or found[2]))
    if status == "401":
        raise AccessDenied(_sign_in(uri, internals.user_name())) from None
    if status == "403":
        operation = _OPERATION.search(text)
        what = f" ({operation[1] or operation[2]})" if operation else ""
        raise AccessDenied(
            f"{signed_in_user()!r}, who is signed in to {uri}, has no permission for this{what}: ask an admin of the server "
            "for it; docs/team-server.md has who needs which"
        ) from None


def _sign_in(uri: str, user_name: str | None) -> str:
    if not user_name:
        return f"sign in to {uri}: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to your name and password there"
    return (
        f"{uri} knows no {user_name!r} with this password: check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
        "(or ask an admin of the server for a new password)"
    )


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn the tracking server's refusals within the block into `AccessDenied`; let all other errors pass."""
    try:
        yield
    except CatDogError:
        raise
    except Exception as error:
        check(error)
        raise
