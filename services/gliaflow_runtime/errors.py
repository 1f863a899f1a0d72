"""Errors that a user can correct, as one line of text; and errors of storage behind a URL (fsspec)."""

from __future__ import annotations


class UsageError(ValueError):
    """A request that makes no sense. The text says what to do."""


def describe_error(error: Exception) -> str:
    """A storage error and its remedy. It names no file, since a file's name may have a patient's name in it."""
    error = _first_cause(error)
    match error:
        case FileNotFoundError():
            return "no such file or bucket"
        case PermissionError():
            return "access denied: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights of that key"
        case ImportError():
            return 'the protocol needs a package that is not installed (s3: pip install "gliaflow[s3]")'
    name = type(error).__name__
    if "Credentials" in name:
        return f"no credentials ({name}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
    if "Connect" in name or "Endpoint" in name or "Timeout" in name:
        return f"the store does not answer ({name}): is AWS_ENDPOINT_URL right?"
    return name


def is_temporary(error: Exception) -> bool:
    """Whether another attempt may help: the store does not answer or is overloaded, but did not refuse the request."""
    error = _first_cause(error)
    if getattr(error, "status", 0) in range(400, 500):  # a web server's answer (aiohttp)
        return getattr(error, "status", 0) in (408, 429)
    permanent = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, ImportError)
    return not isinstance(error, permanent) and "Credentials" not in type(error).__name__


def _first_cause(error: Exception) -> Exception:
    """The error of the HTTP client: fsspec raises FileNotFoundError from it, also if the server does not answer."""
    cause = error.__cause__
    is_http = isinstance(cause, TimeoutError) or type(cause).__module__.startswith("aiohttp.")
    if getattr(cause, "status", 0) == 404:
        return error
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and is_http else error
