"""Compile each Jinja template of an lm-eval task once, instead of once a document."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any


@contextmanager
def compiled_once() -> Iterator[None]:
    """Within this context lm-eval renders its prompts from cached compiled templates; the text is the same to the byte.

    lm-eval compiles the template anew for every document and field, which is most of its own time on these tasks.
    """
    from lm_eval import utils

    stock = utils.apply_template
    compiled = lru_cache(maxsize=None)(utils.env.from_string)

    def apply_template(template: str, doc: dict[str, Any]) -> str:
        return compiled(template).render(**doc)

    utils.apply_template = apply_template
    try:
        yield
    finally:
        utils.apply_template = stock
