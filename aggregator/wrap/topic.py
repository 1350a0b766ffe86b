r"""Which topic a text gets: always the same, such as ``app``, or a topic built from fields of its payload.

The grammar of ``--wrap-topic``::

    template    = 1*( character / placeholder )      any character but "{", "}" and controls
    placeholder = "{" name [ "|" otherwise ] "}"     a field of the payload: text, or a whole number

A name with dots may name a field of a nested object. If a payload has no such field, ``otherwise`` replaces it, or
``unknown`` if the placeholder has no ``otherwise``. ``logs.{program}`` and ``{service.name|app}`` are such templates.
A control character in a field becomes U+FFFD.
"""

from __future__ import annotations

import re
from typing import Any, Final

from aggregator.wire import rules
from aggregator.wrap import fields

UNKNOWN: Final = "unknown"

_PLACEHOLDER: Final = re.compile(r"\{([^{}|]+)(?:\|([^{}|]*))?\}")


class BadTemplate(ValueError):
    """The template is not valid; the text says why."""


class TopicTemplate:
    """Gives each text of one listener its topic."""

    def __init__(self, template: str) -> None:
        """Raises BadTemplate."""
        literals = _PLACEHOLDER.split(template)[::3]
        if any("{" in literal or "}" in literal for literal in literals):
            raise BadTemplate("a brace that does not belong to a {field} or {field|otherwise}")
        if rules.FORBIDDEN.search(template):
            raise BadTemplate("a control character, or bytes that are not UTF-8")
        if not 0 < len(template) <= rules.MAX_NAME_CHARS:
            raise BadTemplate(f"expected 1 to {rules.MAX_NAME_CHARS} characters")
        self._template = template
        self.constant = template if literals == [template] else None
        """The topic, if it is always the same."""

    def fill(self, payload: dict[str, Any]) -> str:
        """The topic of a text with this payload, cut to the length that a topic may have."""
        if self.constant:
            return self.constant
        topic = _PLACEHOLDER.sub(lambda found: _value(payload, found), self._template)
        return topic[: rules.MAX_NAME_CHARS] or UNKNOWN


def _value(payload: dict[str, Any], placeholder: re.Match[str]) -> str:
    found = fields.text(fields.find(payload, placeholder[1]))
    if found is None:
        return UNKNOWN if placeholder[2] is None else placeholder[2]
    return rules.FORBIDDEN.sub("\ufffd", found)
