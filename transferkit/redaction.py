"""Secrets in text that leaves the program: tokens, passwords in addresses, signatures.

Applied where text is shown (`console`, tracebacks), where it is written into a run folder, and to
what is kept of an address. Anything else would have to know which text may hold a secret.
"""

import os
import re
import sys
import traceback
from types import TracebackType

HIDDEN = "REDACTED"
"""No asterisks: these are a pattern in a path."""
SECRET_VARIABLES = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "GOOGLE_API_KEY"),
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"),
)
"""Variables of the environment whose values are hidden wherever they stand."""
SHORTEST_SECRET = 16  # characters; less may be a word
_PARAMETERS = (
    "x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|signature|sig"
    "|awsaccesskeyid|(?:access_|auth_|api_|id_|refresh_)?token|api_?key|password|secret"
)
# What a text in lower case must hold for a pattern to be tried; the pattern; what stays.
_KINDS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    # a Path has one slash of an address's two
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
    """Return a text with a word in place of what looks like a secret, or is one of this process.

    Lines and the quoting of JSON, TOML, CSV and HTML stay as they are. Takes linear time.
    """
    for variable in SECRET_VARIABLES:
        value = os.environ.get(variable, "")
        if len(value) >= SHORTEST_SECRET:
            text = text.replace(value, HIDDEN)
    lower = text.lower()
    for needles, pattern, stays in _KINDS:
        if any(needle in lower for needle in needles):
            text = pattern.sub(stays, text)
    return text


def is_redacted(address: str) -> bool:
    """Whether an address once held a name or a password."""
    return f"/{HIDDEN}@" in address


def show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print a traceback without secrets, to standard error; a `sys.excepthook`."""
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(redacted(text).encode(errors="backslashreplace").decode())
