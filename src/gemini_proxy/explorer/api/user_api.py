"""The API's route for the user that a key belongs to."""

from gemini_proxy.explorer.api.endpoints import ApiCall
from gemini_proxy.explorer.api.response_bodies import IdentityView


async def show_identity(call: ApiCall) -> IdentityView:
    """Show the user of the key."""
    return {"username": call.user}
