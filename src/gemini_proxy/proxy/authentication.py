"""Authenticate a request by its keys, and find its user."""

from gemini_proxy.errors import Forbidden, Unauthenticated, Unavailable
from gemini_proxy.proxy.credentials import Credentials
from gemini_proxy.traces.access import DEVELOPER, AccessControl
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.keys import Identity


class Authentication:
    """``spends`` says that the operator's own Gemini key is used for clients that bring none."""

    def __init__(self, access: AccessControl, *, spends: bool) -> None:
        self._access = access
        self._spends = spends

    async def owner(self, credentials: Credentials) -> str:
        """Return the user of a request, "" for one that has no Invariant key and needs none.

        Raises Unauthenticated for an invalid key, and, if access needs keys, for a request without a key that could
        spend the operator's Gemini key: the proxy must not be an open relay. Raises Forbidden for a key that decides
        approvals: the party that asks must not be able to allow it. Raises Unavailable if the keys cannot be read.
        """
        if credentials.invariant is None:
            if self._access.mode == "open":
                return DEVELOPER
            if self._spends:
                raise Unauthenticated("You must provide a valid API key: an Invariant key of this server")
            return ""
        identity = await self.identity(credentials.invariant)
        if identity.role == "approver":
            raise Forbidden("A key with the role approver cannot make calls")
        return identity.owner

    async def identity(self, key: str) -> Identity:
        """Return whom an Invariant key stands for. Raise Unauthenticated, and Unavailable if keys cannot be read."""
        try:
            identity = await self._access.identity(key)
        except StoreError:
            raise Unavailable("The keys cannot be read now; try again later") from None
        if identity is None:
            raise Unauthenticated("You must provide a valid API key: the Invariant key is not known to this server")
        return identity
