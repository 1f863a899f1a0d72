"""What goes wrong with files behind a URL, in words. They are read by fsspec; ``s3://`` needs the extra "s3"."""

from __future__ import annotations


def in_words(error: Exception) -> str:
    """The error, and what to do about it. Names no file: what is read may be named after a patient."""
    match error:
        case FileNotFoundError():
            return "no such file or bucket"
        case PermissionError():
            return "access denied: look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights that they have"
        case ImportError():
            return 'the protocol needs a package that is not installed (s3: pip install "gliaflow[s3]")'
    name = type(error).__name__
    if "Credentials" in name:
        return f"no credentials ({name}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
    if "Connect" in name or "Endpoint" in name or "Timeout" in name:
        return f"the store does not answer ({name}): is AWS_ENDPOINT_URL right?"
    return f"{name}"


def is_passing(error: Exception) -> bool:
    """Whether another attempt may help: the store is away or overloaded, rather than that it said no."""
    lasting = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, ImportError)
    return not isinstance(error, lasting) and "Credentials" not in type(error).__name__
