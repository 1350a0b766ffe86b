"""Certificates made with openssl, as an administrator makes them."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CONFIGURATION: Final = """
[ca]
default_ca = it
[it]
database = {folder}/index.txt
default_md = sha256
default_crl_days = 30
"""


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, both in PEM."""

    certificate: Path
    key: Path

    @property
    def options(self) -> tuple[str, ...]:
        """The server's options for this pair."""
        return ("--tls-cert", str(self.certificate), "--tls-key", str(self.key))

    @property
    def of_client(self) -> tuple[str, ...]:
        """The options of one of our client commands for this pair."""
        return ("--cert", str(self.certificate), "--key", str(self.key))


class Authority:
    """A CA with its own folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder / name
        self.folder.mkdir(parents=True)
        self.certificate = self.folder / "ca.pem"
        self._key = self.folder / "ca.key"
        openssl(
            "req", "-x509", *_new_key("ec"), "-keyout", self._key, "-out", self.certificate, "-days", "30",
            "-subj", f"/CN={name}",
        )  # fmt: skip
        (self.folder / "index.txt").touch()
        self._configuration = self.folder / "ca.cnf"
        self._configuration.write_text(_CONFIGURATION.format(folder=self.folder))

    def issue(self, name: str, key: str = "ec", days: int = 30, names: str = "", instead_of_names: str = "") -> Pair:
        """A certificate for ``name``. ``names`` are further alternative names; the other argument replaces all."""
        stem = f"{name}-{key}"  # of each kind of key one: some tests share a certificate, and others make their own
        pair = Pair(self.folder / f"{stem}.pem", self.folder / f"{stem}.key")
        request = self.folder / f"{stem}.csr"
        extensions = self.folder / f"{stem}.ext"
        alternative = instead_of_names or f"DNS:{name}{',' + names if names else ''}"
        extensions.write_text(f"subjectAltName={alternative}\n")
        openssl("req", *_new_key(key), "-keyout", pair.key, "-out", request, "-subj", f"/CN={name}")
        openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
            "-days", str(days), "-extfile", extensions, "-out", pair.certificate,
        )  # fmt: skip
        return pair

    def server(self, key: str = "ec") -> Pair:
        """A certificate for this machine."""
        return self.issue("localhost", key, names="IP:127.0.0.1")

    def revoked(self, *pairs: Pair, days: int = 30) -> Path:
        """A revocation list with these pairs in it, valid for this many days from now; with 0, it has expired."""
        for pair in pairs:
            self._ca("-revoke", str(pair.certificate))
        found = self.folder / "crl.pem"
        valid = ["-crldays", str(days)] if days else ["-crl_lastupdate", "20200101000000Z", "-crl_nextupdate",
                                                     "20200102000000Z"]  # fmt: skip
        self._ca("-gencrl", *valid, "-out", str(found))
        return found

    def _ca(self, *words: str) -> None:
        openssl("ca", "-config", self._configuration, "-cert", self.certificate, "-keyfile", self._key, *words)

    def trusting(self, pair: Pair | None = None, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A client's context that trusts this CA, and presents this certificate."""
        context = ssl.create_default_context(cafile=self.certificate)
        if pair:
            context.load_cert_chain(pair.certificate, pair.key)
        if version:
            context.minimum_version = context.maximum_version = version
        return context


def openssl(*words: str | Path) -> str:
    """Run openssl; return its standard output."""
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _new_key(kind: str) -> tuple[str, ...]:
    how = {"ec": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"), "rsa": ("-newkey", "rsa:2048")}
    return (*how[kind], "-nodes")
