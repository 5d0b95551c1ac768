"""HTML pages that need nothing else: one file, no script, everything escaped, whoever wrote it."""

from pathlib import Path
from typing import Any

import jinja2

from shared.format.tokens import enum_name
from shared.showing.looks import LOOKS

_TEMPLATES = Path(__file__).parent / "templates"


def render(folder: Path, template: str, **values: Any) -> str:
    """A page from a template of ``folder``, which may use those that lie beside this module.

    ``values`` are what it shows; ``looks``, by name of class, and the filters ``thousands`` and ``amount`` are there
    too. A value that is missing is a `jinja2.UndefinedError`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _TEMPLATES]), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    environment.filters |= {"thousands": "{:,}".format, "amount": _amount}
    looks = {enum_name(token_class): look for token_class, look in LOOKS.items()}
    return environment.get_template(template).render(looks=looks, **values)


def _amount(value: float) -> str:
    """Three digits, or a whole number: "0.250", "15.0", "152", "25,011"."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"
