"""TLS for the coordinator's door: a certificate per job that nobody has to be told beforehand.

::

    coordinator: new key, self-signed certificate -- both in memory only
    client: takes whatever certificate it is shown -- then both put its SHA-256 into their proofs (auth.py)

So what makes the certificate trustworthy is the job's token: a man in the middle would have to show one whose key he
has, and then the proofs of the two ends do not fit. No authority, no host names, no fingerprint to copy.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import ssl

from hvtrain.errors import EnvironmentNotReady

VALID_DAYS = 3650
"""Nobody looks at the dates: the certificate is as good as the job is long."""


def server_context() -> tuple[ssl.SSLContext, str]:
    """A context with a new certificate, and the channel that it makes.

    Raises:
        EnvironmentNotReady: the package that makes certificates is missing.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise EnvironmentNotReady("launch.tls needs the package cryptography, which is not installed.",
                                  "pip install 'hvtrain[tls]'") from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hvtrain job")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS)).sign(key, hashes.SHA256()))
    encoding = serialization.Encoding
    text = certificate.public_bytes(encoding.PEM) + key.private_bytes(
        encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load(context, text)
    return context, channel(certificate.public_bytes(encoding.DER))


def client_context() -> ssl.SSLContext:
    """A context that takes any certificate: see the module for why that is enough."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def channel(certificate: bytes) -> str:
    """The name of a channel whose server shows ``certificate`` (DER)."""
    return hashlib.sha256(certificate).hexdigest()


def _load(context: ssl.SSLContext, text: bytes) -> None:
    """The ssl module reads keys from files only; this one lies in memory and has no name in any file system."""
    fd = os.memfd_create("hvtrain-tls")
    try:
        os.write(fd, text)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
