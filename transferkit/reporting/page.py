"""From templates to one self-contained page whose content security policy blocks all else."""

import base64
import hashlib
import shlex
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from transferkit.units import count_text, duration_text, rate_text


def share_text(value: float | None, digits: int = 1) -> str:
    """Write a share in percent; a dash for None or NaN."""
    return "–" if value is None or value != value else f"{100 * value:.{digits}f}%"


@cache
def environment() -> Environment:
    """Return the templates; everything put into them is escaped."""
    templates = Environment(
        loader=PackageLoader("transferkit.reporting", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    templates.filters |= {
        "share": share_text,
        "duration": duration_text,
        "count": count_text,
        "rate": rate_text,
        "zip": lambda left, right: list(zip(left, right, strict=True)),
        "shell": lambda value: shlex.quote(str(value)),
    }
    return templates


def render(
    template: str,
    scripts: tuple[str, ...],
    styles: tuple[str, ...] = ("report.css",),
    connect: str = "'none'",
    **values: Any,
) -> str:
    """Fill a template. scripts, styles: files beside it, the only code that the page runs.

    connect: see `policy`.
    """
    return (
        environment()
        .get_template(template)
        .render(
            policy=policy(styles, scripts, connect),
            style=Markup(style_of(styles)),
            scripts=[Markup(asset(name)) for name in scripts],
            **values,
        )
    )


def policy(styles: tuple[str, ...], scripts: tuple[str, ...], connect: str = "'none'") -> str:
    """Return the content security policy of a page with exactly these styles and scripts.

    connect: a source expression of the places that scripts may send requests to.
    """
    style, script = digest(style_of(styles)), " ".join(digest(asset(name)) for name in scripts)
    return (
        f"default-src 'none'; img-src data:; style-src {style}; script-src {script}; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def style_of(styles: tuple[str, ...]) -> str:
    """Return several style sheets as one."""
    return "".join(asset(name) for name in styles)


def asset(name: str) -> str:
    """Return a style sheet or a script that lies beside the templates."""
    loader = environment().loader
    assert loader is not None
    return loader.get_source(environment(), name)[0].strip() + "\n"


def digest(text: str) -> str:
    """Return the source expression that allows exactly this inline text (W3C, CSP level 3)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
