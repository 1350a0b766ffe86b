"""OpenSSL, as servers and clients alike use it: a certificate with its key, and why something has failed."""

from __future__ import annotations

import ssl
from pathlib import Path


class EncryptedKey(Exception):
    """The key of a certificate is encrypted, and nobody is asked for its password."""


def add_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Show this certificate to peers. Raises EncryptedKey, and SSLError for what cannot be used."""

    def no_password() -> str:  # OpenSSL would ask for one on the terminal
        raise EncryptedKey

    context.load_cert_chain(certificate, key, no_password)


def reason(error: ssl.SSLError) -> str:
    """What OpenSSL says, without its file names and numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return (error.reason or "expected PEM").replace("_", " ").lower()
