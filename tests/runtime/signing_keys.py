"""Keys for the tests of signatures, made by the library `cryptography`."""

import datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

PEM = serialization.Encoding.PEM
CURVES = {"secp256r1": ec.SECP256R1, "secp384r1": ec.SECP384R1, "secp521r1": ec.SECP521R1, "secp256k1": ec.SECP256K1}


class KeyPair(NamedTuple):
    private: object
    public: object


def key_pair(folder, curve):
    """Two PEM files."""
    key = ec.generate_private_key(CURVES[curve]())
    pair = KeyPair(folder / "private.pem", folder / "public.pem")
    pair.private.write_bytes(private_pem(key))
    pair.public.write_bytes(public_of(key))
    return pair


def private_pem(key, how=None):
    how = how or serialization.NoEncryption()
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, how)


def public_of(key):
    return key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def encrypted():
    return private_pem(ec.generate_private_key(ec.SECP256R1()), serialization.BestAvailableEncryption(b"secret"))


def make(kind):
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    return ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(CURVES[kind]())


def public_pem(kind):
    """A public key that model-signing does not take, or a certificate."""
    if kind != "certificate":
        return public_of(make(kind))
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime(2026, 1, 1)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=9999))
    return made.sign(key, hashes.SHA256()).public_bytes(PEM)
