"""Files of identities, and tokens for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aggregator.access import token


def write(path: Path, *stanzas: dict[str, Any]) -> Path:
    """Write a file that the server accepts. The values are written as JSON, which is also valid TOML."""
    lines = []
    for stanza in stanzas:
        lines += ["[[identity]]", *(f"{key} = {json.dumps(value)}" for key, value in stanza.items())]
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    return path


def with_token(name: str, **stanza: Any) -> tuple[str, dict[str, Any]]:
    """A new token, and a stanza of the identity that has it."""
    new = token.new()
    return new, {"name": name, "token_sha256": [token.digest(new)], **stanza}


def auth(new: str) -> bytes:
    """The first line of a client that has this token."""
    return f"AUTH {new}\n".encode()
