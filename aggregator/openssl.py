"""What server and client both need of OpenSSL: to load a certificate with its key, and to say why something failed."""

from __future__ import annotations

import ssl
from pathlib import Path


class EncryptedKey(Exception):
    """The key of a certificate is encrypted. Nobody is asked for the password."""


def add_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Show this certificate to peers. Raises EncryptedKey, and SSLError for files that cannot be used."""

    def no_password() -> str:  # without it OpenSSL would ask on the terminal
        raise EncryptedKey

    context.load_cert_chain(certificate, key, no_password)


def reason(error: ssl.SSLError) -> str:
    """What OpenSSL says, without its file names and numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return (error.reason or "expected PEM").replace("_", " ").lower()
