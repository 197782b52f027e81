"""Who a key belongs to."""

from gemini_proxy.explorer.api.endpoints import Call


async def identity(call: Call) -> object:
    """``GET /api/v1/user/identity``"""
    return {"username": call.user}
