"""Removing secrets from text that leaves the program: tokens, passwords in URLs, signatures.

Applied wherever text is shown (`console`, tracebacks) or written into a run folder, and to URLs
that are stored. Anything narrower would have to know which text may hold a secret.
"""

import os
import re
import sys
import traceback
from types import TracebackType

HIDDEN = "REDACTED"
"""No asterisks: in a path they would be a glob pattern."""
SECRET_VARIABLES = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "GOOGLE_API_KEY"),
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"),
)
"""Environment variables whose values are hidden wherever they occur."""
SHORTEST_SECRET = 16  # characters; fewer may be a word
_PARAMETERS = (
    "x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|signature|sig"
    "|awsaccesskeyid|(?:access_|auth_|api_|id_|refresh_)?token|api_?key|password|secret"
)
# Substrings, one of which the text in lower case must contain for the pattern to be tried; the
# pattern; its replacement.
_KINDS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    # pathlib collapses the two slashes of a URL into one
    (
        ("@",),
        re.compile(r"(?<=[a-z0-9+.-]{2}:)(//?)[^\s/\"'<>\\]+@", re.IGNORECASE),
        rf"\1{HIDDEN}@",
    ),
    (("hf_",), re.compile(r"\bhf_[A-Za-z0-9]{30,}"), f"hf_{HIDDEN}"),
    (
        ("=",),
        re.compile(rf"([?&;](?:{_PARAMETERS})=)[^\s&\"'<>\\]+", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    (("token=",), re.compile(r"(token=)[\w.~%+/=-]{8,}", re.IGNORECASE), rf"\1{HIDDEN}"),
    (
        ("authorization",),
        re.compile(
            r"(authorization\\?[\"']?\s{0,9}[:=]\s{0,9}\\?[\"']?(?:(?:bearer|basic|token)\s{1,9})?)"
            r"[^\s\"',}\\]+",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    (("bearer",), re.compile(r"(\bbearer\s{1,9})[\w.~+/=-]{16,}", re.IGNORECASE), rf"\1{HIDDEN}"),
)


def redacted(text: str) -> str:
    """Replace what looks like a secret, or equals one in the environment, by a placeholder.

    Line breaks and the quoting of JSON, TOML, CSV and HTML are preserved. Takes linear time.
    """
    for variable in SECRET_VARIABLES:
        value = os.environ.get(variable, "")
        if len(value) >= SHORTEST_SECRET:
            text = text.replace(value, HIDDEN)
    lower = text.lower()
    for needles, pattern, replacement in _KINDS:
        if any(needle in lower for needle in needles):
            text = pattern.sub(replacement, text)
    return text


def is_redacted(address: str) -> bool:
    """Whether a user name or password was removed from a URL."""
    return f"/{HIDDEN}@" in address


def show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print a traceback without secrets, to standard error; a `sys.excepthook`."""
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(redacted(text).encode(errors="backslashreplace").decode())
