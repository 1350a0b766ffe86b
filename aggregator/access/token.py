"""Tokens: 256 random bits as text. The server keeps their SHA-256 only.

Nobody can guess a token, so a plain digest protects it as well as a slow one would, and no attempt has to be delayed.
For the same reason only tokens of this form are accepted: a password could be guessed.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from typing import Final

_BYTES: Final = 32
_FORM: Final = re.compile(r"agg_[a-z2-7]{52}")
_SECRET: Final = re.compile(r"(?i)agg_[a-z2-7]{12,}|(?<=\")([ \t]*auth[ \t])[^\"]*")


def new() -> str:
    """A new token."""
    return "agg_" + base64.b32encode(secrets.token_bytes(_BYTES)).decode().rstrip("=").lower()


def is_token(text: str) -> bool:
    """Whether a text has the form of a token."""
    return _FORM.fullmatch(text) is not None


def digest(token: str) -> str:
    """The token's SHA-256 in hexadecimal digits, as the file of ``--identities`` has it."""
    return hashlib.sha256(token.encode()).hexdigest()


def redacted(text: str) -> str:
    """The text in a form that may be logged: without tokens, whole or cut off, and without what follows AUTH in a
    quoted line."""
    return _SECRET.sub(lambda found: f"{found[1] or ''}(a token)", text)
