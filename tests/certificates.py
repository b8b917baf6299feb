"""Certificates of one's own, made on the spot."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from havir_explorer.cluster import Certificates


def write_certificates(folder: Path) -> Certificates:
    """Write an authority, a certificate that it has signed, and its key."""
    folder.mkdir(exist_ok=True)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _signed("authority", authority_key, "authority", authority_key, is_authority=True)
    certificate = _signed("worker", key, "authority", authority_key, is_authority=False)
    files = Certificates(folder / "authority.pem", folder / "certificate.pem", folder / "key.pem")
    files.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files.key.write_bytes(key.private_bytes(*form))
    return files


def _signed(name, key, issuer, issuer_key, *, is_authority):
    now = datetime.now(UTC)
    subject, by = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (name, issuer))
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(by).public_key(key.public_key()).serial_number(x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    return made.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True).sign(issuer_key, hashes.SHA256())
