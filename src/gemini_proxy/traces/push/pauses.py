"""When to try again: pauses that grow while a service fails. No I/O, no clock."""

from typing import Final

FIRST: Final = 1.0
LONGEST: Final = 300.0
# A service may ask for more patience than we have by ourselves; not for so much that it is forgotten.
LONGEST_ASKED: Final = 3600.0


def pause(failures: int, jitter: float, asked: float | None = None) -> float:
    """Seconds to wait after so many failures in a row: twice as long each time, from one second to five minutes.

    ``jitter``, from 0 to 1, takes up to half of it away, so that those who failed together do not return together.
    ``asked`` is what the service asks for, honoured up to an hour.
    """
    grown = min(FIRST * 2.0 ** min(max(failures - 1, 0), 32), LONGEST) * (1 - jitter / 2)
    return max(grown, min(asked or 0.0, LONGEST_ASKED))


class Patience:
    """What is known of a service: whether it answers, and how long to leave it alone.

    While ``probing`` one attempt at a time is enough to find out; so it is at the beginning, lest a process that
    restarts again and again brings a crowd each time.
    """

    def __init__(self) -> None:
        self.probing = True
        self.failures = 0
        self.round = 0
        self._pause = 0.0

    def failed(self, begun_in: int, jitter: float, asked: float | None = None) -> None:
        """An attempt has failed that began in the round ``begun_in``. Of those under way together the first one counts.

        Rounds and not times, for clocks are set back.
        """
        if begun_in != self.round:
            return
        self.round += 1
        self.failures += 1
        self.probing = True
        self._pause = pause(self.failures, jitter, asked)

    def succeeded(self) -> None:
        """An attempt has had an answer: the service works."""
        self.probing = False
        self.failures = 0

    def take_pause(self) -> float:
        """The seconds to wait before the next attempt, said once."""
        taken, self._pause = self._pause, 0.0
        return taken
