"""Certificates between peers: optional, and on top of the secret.

They keep what is sent from whoever listens. Who a node is, is proved by the hello in any case, so that a
certificate need not name it: what must hold is that both sides show one that the cluster's own authority
signed.
"""

import ssl
from pathlib import Path

from msgspec import Struct

from holdfast.base.errors import InvalidInput


class TlsFiles(Struct, frozen=True):
    """PEM files: the certificate of the cluster's authority, this node's certificate, and its key (which may
    be the same file)."""

    authority: Path
    certificate: Path
    key: Path


def server_tls(files: TlsFiles) -> ssl.SSLContext:
    """For a PeerServer. Raises InvalidInput."""
    return _filled(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)


def client_tls(files: TlsFiles) -> ssl.SSLContext:
    """For a PeerClient. Raises InvalidInput."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return _filled(context, files)


def _filled(context: ssl.SSLContext, files: TlsFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(str(files.authority))
        # An encrypted key would ask on the terminal, and wait.
        context.load_cert_chain(str(files.certificate), str(files.key), password=_no_password)
    except (OSError, ValueError) as error:
        names = ", ".join(sorted({str(files.authority), str(files.certificate), str(files.key)}))
        raise InvalidInput(
            f"The certificates for peers cannot be used ({names}): {error}.",
            hint="Give PEM files: the authority's certificate, the node's own, its key without a password.",
        ) from error
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")
