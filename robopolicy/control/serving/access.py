"""Access to the server: addresses, keys and certificates."""

import hmac
import ipaddress
import logging
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path


def read_api_key(path: str | Path) -> str:
    """The key in a file's first line.

    Raises:
        ValueError: the file has no key, or one shorter than 16 characters.
    """
    lines = Path(path).read_text().splitlines()
    key = lines[0].strip() if lines else ""
    if len(key) < 16 or not key.isascii():
        raise ValueError(f"{path}: the first line has {len(key)} characters; expected a key of 16 or more, ASCII")
    return key


def is_loopback(host: str) -> bool:
    """Whether a listening address is reachable from this machine only.

    Raises:
        ValueError: `host` is not an address.
    """
    try:
        found = socket.getaddrinfo(host, None) if host else []
    except socket.gaierror as error:
        raise ValueError(f"--host {host}: {error.strerror}; give an address of this machine") from None
    return bool(found) and all(ipaddress.ip_address(address[4][0]).is_loopback for address in found)


def tls_context(cert: str | Path | None, key: str | Path | None) -> ssl.SSLContext | None:
    """A TLS 1.2+ server context with this certificate chain and private key (PEM); None without them.

    Raises:
        ValueError: only one is given, or they can't be read or don't match.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ValueError("--tls-cert and --tls-key belong together; give both")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(
            f"--tls-cert {cert}, --tls-key {key}: {error}; expected a matching pair of PEM files"
        ) from None
    return context


def trusted(ca: str | Path | None = None) -> ssl.SSLContext:
    """A TLS 1.2+ client context that trusts the system's certificates, or only those signed by `ca` (PEM).

    Raises:
        ValueError: the file can't be read or holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{ca}: {error}; expected a file of certificates (PEM)") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def warn_of_plain_text(logger: logging.Logger, host: str, what: str) -> None:
    """Warn if the connection to a remote host is not encrypted."""
    try:
        local = is_loopback(host)
    except ValueError:  # not an address: connecting reports it
        return
    if not local:
        logger.warning(
            "%s: the connection is not encrypted; anyone on the network can read and change the key, images and commands; use wss://",
            what,
        )


def key_fits(headers: Sequence[str], api_key: str | None) -> bool:
    """Whether the one `Authorization` header says `Api-Key <api_key>`, compared in constant time; True without a key."""
    if api_key is None:
        return True
    wanted = f"Api-Key {api_key}".encode()
    return len(headers) == 1 and hmac.compare_digest(headers[0].encode("utf-8", "surrogateescape"), wanted)
