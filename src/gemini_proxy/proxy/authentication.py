"""Who may use the proxy, and as whom: what the keys of a request are worth here."""

from gemini_proxy.errors import Unauthenticated, Unavailable
from gemini_proxy.proxy.credentials import Credentials
from gemini_proxy.traces.access import DEVELOPER, AccessControl
from gemini_proxy.traces.errors import StoreError


class Authentication:
    """``spends`` says that the operator's own Gemini key is used for clients that bring none."""

    def __init__(self, access: AccessControl, *, spends: bool) -> None:
        self._access = access
        self._spends = spends

    async def owner(self, credentials: Credentials) -> str:
        """The user a request is from, "" for one that brings no Invariant key and needs none.

        Raises Unauthenticated for a key that is not valid; and, where keys are asked for, for a request without one if
        the operator's Gemini key could be spent: the proxy is nobody's open relay. Raises Unavailable where the keys
        cannot be read.
        """
        if credentials.invariant is None:
            if self._access.mode == "open":
                return DEVELOPER
            if self._spends:
                raise Unauthenticated("You must provide a valid API key: an Invariant key of this server.")
            return ""
        try:
            user = await self._access.user(credentials.invariant)
        except StoreError:
            raise Unavailable("The keys cannot be read now.") from None
        if user is None:
            raise Unauthenticated("You must provide a valid API key: the Invariant key is not known to this server.")
        return user
