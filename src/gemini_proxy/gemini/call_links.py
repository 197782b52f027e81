"""Gives every call an id of its own and finds the call that an output answers. Gemini gives no ids, or repeats them."""

from collections import deque

_Key = tuple[str | None, str | None]
"""An id as the client gave it, a name, or both: what an output can name a call by."""


class CallLinks:
    """The calls of a conversation so far. Each step takes constant time on average, whatever ids are given."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._number = 0
        self._keys: dict[str, tuple[_Key, ...]] = {}
        self._waiting: dict[_Key, deque[str]] = {}
        self._answered: set[str] = set()
        self._last: dict[_Key, str] = {}

    def copy(self) -> "CallLinks":
        """The same calls, to go on from separately."""
        copied = CallLinks()
        copied._ids = set(self._ids)
        copied._number = self._number
        copied._keys = dict(self._keys)
        copied._waiting = {key: deque(ids) for key, ids in self._waiting.items()}
        copied._answered = set(self._answered)
        copied._last = dict(self._last)
        return copied

    def call(self, given: str, name: str) -> str:
        """The id of a new call: ``given`` where there is one and no call has it yet."""
        call_id = self._new_id(given)
        self._keys[call_id] = _keys(given, name)
        for key in self._keys[call_id]:
            self._waiting.setdefault(key, deque()).append(call_id)
        return call_id

    def output(self, given: str, name: str) -> str:
        """The id of the call that an output answers: by its id, else by its name; the first that waits, else the last
        that was answered. An output without a call gets an id of its own."""
        for key in _keys(given, name):
            if (call_id := self._next(key)) is not None:
                self._answered.add(call_id)
                for called in self._keys[call_id]:
                    self._last[called] = call_id
                return call_id
            if key in self._last:
                return self._last[key]
        return self._new_id(given)

    def _next(self, key: _Key) -> str | None:
        waiting = self._waiting.get(key)
        while waiting:
            call_id = waiting.popleft()
            if call_id not in self._answered:
                return call_id
        return None

    def _new_id(self, given: str) -> str:
        call_id = given
        while not call_id or call_id in self._ids:
            # The number never goes back: ids chosen to be in the way cost one step each, once.
            self._number += 1
            call_id = f"{given or 'call'}_{self._number}"
        self._ids.add(call_id)
        return call_id


def _keys(given: str, name: str) -> tuple[_Key, ...]:
    return ((given, name), (given, None), (None, name)) if given else ((None, name),)
