"""API keys: which clients may use a route."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from service.schemas.problems import Problem


class Keys:
    """The accepted keys of a route; a route without keys is open to everybody.

    Args:
        keys: the accepted keys.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Check that a request has an accepted key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`.

        Compares digests of equal length, always with all keys, in constant time, so that the duration reveals nothing.

        Raises:
            Problem: 401 for a missing or wrong key.
        """
        if not self._digests:
            return
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        key = headers.get(b"x-api-key") or (bearer.strip() if scheme.lower() == b"bearer" else b"")
        digest = hashlib.sha256(key).digest()
        matches = [hmac.compare_digest(digest, accepted) for accepted in self._digests]
        if not any(matches):
            fault = "is not known" if key else "is missing"
            detail = f"the key {fault}: send Authorization: Bearer KEY, or X-API-Key: KEY"
            raise Problem("unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="mcd"'})
