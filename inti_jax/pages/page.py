"""Render a template as a page, and write it."""

import functools
from pathlib import Path
from typing import Any

import jinja2

from inti_jax.errors import naming


def render(template: str, **context: Any) -> str:
    """Render the template of this name with the values of `context`, which are escaped in HTML.

    Raises jinja2.UndefinedError for a value that the template needs and `context` lacks.
    """
    return _environment().get_template(template).render(context)


def write(path: Path, page: str) -> None:
    """Write a page, which appears when it is complete. Text that UTF-8 lacks is written as escapes."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with naming(partial):
            partial.write_bytes(page.encode("utf-8", "backslashreplace"))
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("inti_jax.pages"),
        autoescape=lambda template: template is None or not template.endswith(".md"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `tojson` keeps the order of keys: BokehJS reads what a document defines before it refers to it.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    return environment
