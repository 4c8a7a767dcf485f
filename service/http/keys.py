"""Who may ask: API keys."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from service.schemas.problems import Problem


class Keys:
    """Keys that open something; without any it is open to all.

    Args:
        keys: each that is accepted.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Let a request through that has a key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`.

        Digests of equal length are compared, with all of them, in constant time: how long it takes tells nothing.

        Raises:
            Problem: 401 for a missing or wrong key.
        """
        if not self._digests:
            return
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = headers.get(b"x-api-key") or (bearer.strip() if scheme.lower() == b"bearer" else b"")
        digest = hashlib.sha256(given).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            what = "is not known" if given else "is missing"
            detail = f"the key {what}: send Authorization: Bearer KEY, or X-API-Key: KEY"
            raise Problem("unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="mcd"'})
