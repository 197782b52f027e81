"""Encrypt masked values for the database, with keys of the operator's. No I/O."""

import base64
import binascii
import hashlib
import os
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

KEY_BYTES: Final = 32
MAX_KEYS: Final = 8
"""Keys at a time: one, and while keys are changed the one before it."""
_NONCE_BYTES: Final = 12
"""The length of AES-GCM's nonce (NIST SP 800-38D, 8.2.2): random ones are safe for 2**32 values a key."""
_ID_DIGITS: Final = 8


class ValueUnreadable(Exception):
    """A value cannot be decrypted: its key is not known, or the row is not the one that was written."""


class SealedValue(NamedTuple):
    """A row of the table ``masked_values``, in the order of its columns.

    ``holder`` is a digest of owner and dataset, ``conversation`` one of the conversation that it is of. ``kind`` is
    SENT or SAID, or says which occurrence of the placeholder the model spelled as ``sealed`` tells. ``key`` is the id
    of the key. ``expires`` is in Unix seconds.
    """

    holder: str
    conversation: str
    placeholder: str
    kind: str
    key: str
    sealed: bytes
    expires: float

    @property
    def place(self) -> bytes:
        """Return what the ciphertext is bound to: it cannot be read in another row."""
        return "\0".join(self[:4]).encode(errors="surrogatepass")


class ValueKeys:
    """Keys that encrypt values. The first one encrypts, all of them decrypt."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        # Takes some milliseconds, which servers that keep no values are spared.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
        self.first: Final = _key_id(keys[0])
        """The id of the key that encrypts."""

    @property
    def older(self) -> Collection[str]:
        """Return the ids of the keys that only decrypt."""
        return [key for key in self._ciphers if key != self.first]

    def seal(self, text: str, row: SealedValue) -> SealedValue:
        """Return ``row`` with ``text`` encrypted in it by the first key."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self.first].encrypt(nonce, text.encode(errors="surrogatepass"), row.place)
        return row._replace(key=self.first, sealed=nonce + sealed)

    def open(self, row: SealedValue) -> str:
        """Return the text that was encrypted in a row. Raises ValueUnreadable."""
        from cryptography.exceptions import InvalidTag

        cipher, nonce = self._ciphers.get(row.key), row.sealed[:_NONCE_BYTES]
        if cipher is None:
            raise ValueUnreadable("the key that encrypted it is not configured")
        try:
            return cipher.decrypt(nonce, row.sealed[_NONCE_BYTES:], row.place).decode(errors="surrogatepass")
        except (InvalidTag, ValueError):
            raise ValueUnreadable("it was altered after it was written") from None


def read_value_keys(text: str) -> tuple[bytes, ...]:
    """Return the keys in a text: each in base64, with spaces or line breaks between them.

    Raises ValueError saying what was expected.
    """
    try:
        keys = tuple(base64.b64decode(word, validate=True) for word in text.split())
    except binascii.Error:
        keys = ()
    if not 1 <= len(keys) <= MAX_KEYS or any(len(key) != KEY_BYTES for key in keys) or len(set(keys)) < len(keys):
        raise ValueError(
            f"1 to {MAX_KEYS} different keys of {KEY_BYTES} random bytes in base64, such as openssl rand -base64 "
            f"{KEY_BYTES} prints"
        )
    return keys


def _key_id(key: bytes) -> str:
    """Return what tells a key from others, and nothing of it."""
    return hashlib.sha256(b"gemini-proxy value key" + key).hexdigest()[:_ID_DIGITS]
