"""The version of gliaflow."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("gliaflow")
except PackageNotFoundError:  # a checkout that is not installed
    VERSION = "unknown"
