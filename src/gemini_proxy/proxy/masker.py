"""Mask what guardrails find in an exchange, and texts in its history that were refused before."""

import contextlib
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.body_wire import BodyPlaces
from gemini_proxy.gemini.framing.whole_body import WholeBodyFraming
from gemini_proxy.gemini.merger import Merger
from gemini_proxy.gemini.messages import Message
from gemini_proxy.gemini.parts import strings_in
from gemini_proxy.gemini.uploads import UploadedFile
from gemini_proxy.gemini.wire import ARRAY_TYPE
from gemini_proxy.guardrails.addresses import message_of
from gemini_proxy.guardrails.masking import (
    CannotMask,
    FrameEditor,
    Hiding,
    Masks,
    Occurrence,
    Placeholders,
    RequestMasks,
    Restoring,
    Spellings,
    evidence,
    is_history,
    mask_body,
    mask_file,
    masked_values,
    may_hold_placeholder,
    other_spellings,
    placeholder_digits,
    texts_at,
    turn_of,
)
from gemini_proxy.guardrails.turn_digests import answered, is_of_model, turn_ends
from gemini_proxy.guardrails.verdict import Violation
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.tasks import off_loop
from gemini_proxy.sections import Guardrails
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.headline import conversation_of
from gemini_proxy.traces.known_digests import KnownDigests
from gemini_proxy.traces.masked_values import MOST_ASKED, KeptValues, MaskedValues, ValueScope
from gemini_proxy.traces.trace import Outcome

log = logging.getLogger(__name__)

_AT_ONCE = 16
"""Values that are looked for in a text in the time that it takes to read it as JSON."""
_TURN_DIGITS = 24
"""Digits of a keyed digest that tell turns of one conversation apart."""
_MOST_SPELLINGS = 256
"""Spellings of one response that are remembered."""
_NAMED = 4_096
"""Bytes of strings that take as long as it takes to name one value: detectors say of what kind it is."""
_MASK_ROUNDS = 3
"""Times that a request is masked and checked again: what is hidden may have hidden something else."""
_PROCESS_KEY = os.urandom(32)
"""Names masked values where the configuration has no key: placeholders then are this process's own."""


class Masker:
    """Decide what is masked, with one configuration. ``refused`` stores refused texts, ``values`` masked values.

    Without ``values`` an exchange restores only the values that it masked itself.
    """

    def __init__(self, guardrails: Guardrails, refused: KnownDigests, values: MaskedValues | None) -> None:
        self._guardrails = guardrails
        self._refused = refused
        self._values = values

    async def add(
        self, exchange: Exchange, masks: RequestMasks, violations: Sequence[Violation], *, rounds: int
    ) -> RequestMasks:
        """Return ``masks`` with the ranges of a request's violations. The request was masked ``rounds`` times before.

        Raises CannotMask.
        """
        if rounds >= _MASK_ROUNDS:
            raise CannotMask("it is found again")
        if any((message_of(address) or 0) < exchange.sent for one in violations for address in one.ranges):
            raise CannotMask("the model has some of it already")
        healed = [violation for violation in violations if violation.healed]
        if healed and not masks.contents:
            masks = replace(masks, contents=await contents_of(exchange))
        for violation in healed:
            masks = self._without(exchange.checked_request.messages, masks, violation)
        others = [violation for violation in violations if not violation.healed]
        if not others:
            return masks
        messages, places = exchange.checked_request.messages, sum(len(violation.ranges) for violation in others)
        return masks.with_values(await off_loop(places * _NAMED, self._placeholders, exchange, messages, others))

    def _without(self, messages: Sequence[Message], masks: RequestMasks, violation: Violation) -> RequestMasks:
        """Return ``masks`` that remove the texts of a violation of the history, or the turns that contain it.

        Content that is not text is removed with its turn, and so is a match that remains after texts were removed. In a
        turn that is still open only the content itself is removed.
        """
        removed, dropped = dict(masks.removed), set(masks.dropped)
        left = masks.contents_left
        for address in violation.ranges:
            content = left[message_of(address) or 0]
            assert content is not None
            with contextlib.suppress(CannotMask):
                if self._guardrails.history == "drop" or content in masks.removed:
                    dropped |= turn_of(content, left, messages)
                    continue
            try:
                removed[content] = removed.get(content, frozenset()) | set(texts_at(messages, address))
            except CannotMask:
                dropped |= turn_of(content, left, messages)
        return replace(masks, removed=removed, dropped=frozenset(dropped))

    async def healed(
        self, exchange: Exchange, masks: RequestMasks, violations: Sequence[Violation]
    ) -> tuple[Violation, ...]:
        """Return the violations, marked as healed if they are only in the history and were refused before.

        A new match in a place where ``masks`` removed something belongs to the same turn.
        """
        blocking = [violation for violation in violations if violation.action == "block"]
        if not blocking or not exchange.heals:
            return tuple(violations)
        messages, contents, left = exchange.checked_request.messages, await contents_of(exchange), masks.contents_left
        again = {id(one) for one in blocking if masks.removed and _lies_in(masks.removed, left, one)}
        old = [violation for violation in blocking if is_history(contents, violation) and id(violation) not in again]
        digests = await off_loop(exchange.size, self._digests, exchange, messages, old)
        asked = {digest for some in digests.values() for digest in some}
        try:
            known = await self._refused.known(asked) if asked else frozenset[str]()
        except StoreError as error:
            log.warning("refused texts cannot be read, so they stay in later requests: %s", error)
            return tuple(violations)
        heals = {number for number, some in digests.items() if some and known.issuperset(some)} | again
        return tuple(replace(one, healed=True) if id(one) in heals else one for one in violations)

    async def remember_refused(self, exchange: Exchange) -> None:
        """Store digests of the texts of a refused exchange, so that a chat whose history repeats them can continue."""
        if self._guardrails.history == "refuse":
            return
        blocking = [violation for violation in exchange.violations if violation.action == "block"]
        digests = await off_loop(exchange.size, self._digests, exchange, exchange.messages, blocking)
        try:
            await self._refused.remember({digest for some in digests.values() for digest in some})
        except StoreError as error:
            log.warning("refused texts cannot be stored, so a chat may be refused again because of them: %s", error)

    def _keeps_values(self, exchange: Exchange) -> bool:
        return self._values is not None and exchange.is_of_user

    def may_recall(self, exchange: Exchange) -> bool:
        """Tell whether the request may hold placeholders of earlier exchanges, whose values are kept."""
        row = exchange.call.row
        if not self._keeps_values(exchange) or not (exchange.call.generates or row.keeps):
            return False
        return bool(exchange.origins) or bool(exchange.body and may_hold_placeholder(exchange.body))

    async def recall(self, exchange: Exchange, masks: RequestMasks, asked: Sequence[Message]) -> RequestMasks:
        """Return ``masks`` with the values of placeholders in the request or in the content of its references.

        These are only values that the client sent in an earlier exchange of the conversation, or in the exchanges that
        made the referenced objects. If the database does not answer, there are none. ``asked`` are the messages before
        masking.
        """
        if not self.may_recall(exchange):
            return masks
        named = await off_loop(len(exchange.body), placeholder_digits, exchange.body, MOST_ASKED)
        said = _conversation_so_far(exchange) if named else ""
        kept = await self._find(exchange, [said], named) if said else KeptValues()
        exchange.lasting = {said: kept.lasting}
        own = set(masks.placeholders.values())
        values = {
            **(await self.values_of(exchange, exchange.origins) if exchange.origins else {}),
            **{placeholder: value for placeholder, value in kept.sent.items() if placeholder not in own},
        }
        again = kept.spellings and exchange.call.row.transport == "json"
        spellings = await self._spellings(exchange, masks, asked, kept.spellings) if again else None
        masks = replace(masks, earlier=dict(islice(values.items(), MOST_ASKED)), spellings=spellings)
        if masks.restorable is not None and exchange.call.generates and exchange.call.row.transport == "json":
            exchange.asked, exchange.repetitions = tuple(asked), []
        return masks

    async def _spellings(
        self,
        exchange: Exchange,
        masks: RequestMasks,
        asked: Sequence[Message],
        kept: Mapping[tuple[str, str], str],
    ) -> Spellings | None:
        """Return how the model spelled placeholders in the turns of the history that are as they were."""
        contents = masks.contents or await contents_of(exchange)
        names = names_of(self._guardrails, exchange, _PROCESS_KEY)
        by_turn: dict[str, list[tuple[Occurrence, str]]] = {}
        for (placeholder, kind), spelled in kept.items():
            turn, occurrence = _occurrence(placeholder, kind)
            by_turn.setdefault(turn, []).append((occurrence, spelled))
        known: dict[tuple[str, Occurrence], str] = {}
        turns: dict[int, str] = {}
        start = 0
        for end, digest in await off_loop(exchange.size, lambda: list(turn_ends(asked))):
            of_turn = by_turn.get(names.digest(digest)[:_TURN_DIGITS], ())
            if of_turn:
                known |= {(digest, occurrence): spelled for occurrence, spelled in of_turn}
                pairs = zip(contents[start:end], asked[start:end], strict=False)
                turns |= {content: digest for content, one in pairs if content is not None and is_of_model(one)}
            start = end
        return Spellings(turns, known) if turns else None

    async def note_spellings(self, exchange: Exchange) -> None:
        """Note the model's own spellings of placeholders for the trace, where they differ from the given ones.

        Note nothing about a response that the client did not receive as restored.
        """
        masks, asked = exchange.masks, exchange.asked
        if not exchange.repetitions or masks is None or masks.unsent or asked is None:
            return
        others = list(other_spellings(exchange.repetitions, masks).items())[:_MOST_SPELLINGS]
        if not others or exchange.outcome is not Outcome.COMPLETED:
            return
        names = names_of(self._guardrails, exchange, _PROCESS_KEY)
        turns = await off_loop(exchange.size, answered, asked, exchange.response_messages)
        exchange.spelled = tuple(
            (occurrence[0], _kind(names.digest(turn), occurrence), spelled)
            for turn in turns
            for occurrence, spelled in others
        )

    async def values_of(
        self, exchange: Exchange, conversations: Sequence[str], digits: Collection[str] | None = None
    ) -> Mapping[str, str]:
        """Return the values of placeholders with these digits, or all values, that the user sent in the conversations.

        An object that an exchange made has the id of the trace as its conversation. Return None if the database does
        not answer, or if values are not kept.
        """
        return (await self._find(exchange, conversations, digits)).sent

    async def _find(
        self, exchange: Exchange, conversations: Sequence[str], digits: Collection[str] | None
    ) -> KeptValues:
        if self._values is None or not exchange.is_of_user:
            return KeptValues()
        try:
            scope = ValueScope(exchange.owner, exchange.call.dataset, conversations)
            return await self._values.find(scope, digits)
        except StoreError as error:
            log.warning("masked values of earlier exchanges cannot be read, so they are not restored: %s", error)
            return KeptValues()

    async def mask_request(self, exchange: Exchange, body: bytes, masks: RequestMasks) -> bytes:
        """Return ``body``, the original body of the request, masked.

        Raises CannotMask if no value could be restored, and for a call that only reads an object that Gemini keeps.
        """
        if not body:
            raise CannotMask("it is in what Gemini keeps already")
        later = exchange.checked_request.settings.get("background") and not self._keeps_values(exchange)
        if masks.restorable is not None and later:
            raise CannotMask("the response comes later, where it cannot be put back")
        return await off_loop(len(body), mask_body, body, masks, exchange.wire)

    async def mask_file(self, file: UploadedFile, masks: RequestMasks) -> UploadedFile:
        """Return ``file``, as it came, masked. Raises CannotMask for one that cannot be changed."""
        return await off_loop(len(file.data or b""), mask_file, file, masks.of(None))

    def restore_names(self, masks: Masks, body: bytes, most_added: int) -> bytes:
        """Return ``body``, which describes an object that Gemini keeps, with values in place of placeholders.

        Anything but a JSON object is returned unchanged, and so is one that would grow by more than ``most_added``.
        """
        editor = FrameEditor(WholeBodyFraming(), Restoring(masks), places=BodyPlaces(), most_added=most_added)
        try:
            return editor.edit(body)
        except DecodeError:
            return body

    def hide_refused(self, exchange: Exchange, violations: Sequence[Violation]) -> None:
        """Have the trace of a refused request hide what was to be masked, as far as that is text."""
        self._hide(exchange, exchange.checked_request.messages, violations)

    def hide_ended(self, exchange: Exchange, violations: Sequence[Violation]) -> None:
        """Have the trace of an exchange that ended here hide the texts that were to be masked.

        Values that are not known to be the client's own are restored in no later exchange.
        """
        before = exchange.masks
        sent = before.placeholders.keys() - before.unsent if before is not None else frozenset[str]()
        self._hide(exchange, exchange.messages, violations)
        if exchange.masks is not None:
            placeholders = exchange.masks.placeholders
            exchange.masks = Masks(placeholders, unsent=placeholders.keys() - sent)

    def _hide(self, exchange: Exchange, messages: Sequence[Message], violations: Sequence[Violation]) -> None:
        for violation in violations:
            if violation.healed:
                continue
            with contextlib.suppress(CannotMask):
                hidden = self._placeholders(exchange, messages, [violation])
                exchange.masks = Masks({**(exchange.masks.placeholders if exchange.masks else {}), **hidden})

    async def mask_response(self, exchange: Exchange, violations: Sequence[Violation], body: bytes, left: int) -> bytes:
        """Return ``body``, the rest of a response, with the ranges of the violations hidden. Raises CannotMask.

        Values that the client itself sent stay. ``left`` is the number of events that have left.
        """
        sent = exchange.masks.placeholders if exchange.masks else {}
        found = self._placeholders(exchange, exchange.messages, violations)
        placeholders = {value: placeholder for value, placeholder in found.items() if value not in sent}
        exchange.masks = Masks({**placeholders, **sent}, unsent=placeholders)
        editor = FrameEditor(exchange.new_framing(), Hiding(Masks(placeholders)), places=exchange.wire.places)
        # The rest of an array is read as one from its beginning.
        opened = b"[{}" if left and exchange.framing == ARRAY_TYPE else b""
        masked = await off_loop(len(body), editor.edit, opened + body)
        if not editor.replaced.issuperset(placeholders.values()):
            raise CannotMask("it is not in the text of the response alone")
        if await off_loop(len(body), _call_says, exchange, masked, tuple(placeholders)):
            raise CannotMask("the arguments of a call spell it another way")
        return masked.removeprefix(opened)

    def _placeholders(
        self, exchange: Exchange, messages: Sequence[Message], violations: Sequence[Violation]
    ) -> dict[str, str]:
        """Return what the violations point at, each value with its placeholder. Raises CannotMask."""
        names, known = names_of(self._guardrails, exchange, _PROCESS_KEY), exchange.masks
        values = [known.show(value) if known else value for value in masked_values(messages, violations)]
        return {value: names.of(value) for value in values}

    def _digests(
        self, exchange: Exchange, messages: Sequence[Message], violations: Sequence[Violation]
    ) -> dict[int, list[str]]:
        """Return digests of what each of the violations points at, by its identity."""
        # Traces hold the texts themselves, so without a key of its own a digest gives nothing away.
        names = names_of(self._guardrails, exchange, b"gemini-proxy")
        return {id(one): [names.digest(text) for text in evidence(messages, one)] for one in violations}


def names_of(guardrails: Guardrails, exchange: Exchange, otherwise: bytes) -> Placeholders:
    """Return what names values of the exchange's owner and dataset, with ``otherwise`` where no key is configured."""
    key = guardrails.mask_key
    secret = key.get_secret_value().encode() if key else otherwise
    return Placeholders(secret, exchange.owner, exchange.call.dataset)


def _call_says(exchange: Exchange, body: bytes, values: Sequence[str]) -> bool:
    """Return whether a call in the rest of a response holds any of the values."""
    framing, reader, merger = exchange.new_framing(), exchange.wire.new_reader(exchange.call), Merger()
    for frame in (*framing.feed(body), *framing.end()):
        for payload in reader.read(frame.payload) if frame.payload is not None else ():
            merger.add(payload)
    parts = (part for candidate in merger.candidates for part in candidate.parts)
    said = [text for part in parts if "functionCall" in part for text in strings_in(part["functionCall"])]
    return any(value in text for text in said for value in values)


def _kind(turn: str, occurrence: Occurrence) -> str:
    """Return the kind under which the spelling of an occurrence is kept. ``turn`` is a keyed digest."""
    _, thought, number = occurrence
    return f"{turn[:_TURN_DIGITS]} {'t' if thought else 's'}{number}"


def _occurrence(placeholder: str, kind: str) -> tuple[str, Occurrence]:
    """Return what ``_kind`` made a kind of: the beginning of the turn's digest, and the occurrence."""
    turn, _, rest = kind.partition(" ")
    return turn, (placeholder, rest[:1] == "t", int(rest[1:]))


def _conversation_so_far(exchange: Exchange) -> str:
    """Return the conversation that the request continues, as traces name it; "" for a new one."""
    if exchange.conversation:
        return exchange.conversation
    stored = exchange.checked_request.stored
    return conversation_of(stored) if any(message.get("role") == "assistant" for message in stored) else ""


async def contents_of(exchange: Exchange) -> tuple[int | None, ...]:
    """Return for each message of the request which of its contents it is made of; nothing for a file."""
    if not exchange.body:
        return ()
    own = await off_loop(len(exchange.body), exchange.wire.contents_of_messages, exchange.call, exchange.body)
    return (*[None] * exchange.checked_request.earlier, *own) if own else own


def masked_bytes(exchange: Exchange) -> int:
    """Return the bytes that take as long as it takes to look for the masked values of an exchange in all of it."""
    if exchange.masks is None:
        return 0
    size = max(exchange.size, len(exchange.file.data or b"") if exchange.file is not None else 0)
    size += exchange.stream.size if exchange.stream is not None else 0
    return size * max(1, len(exchange.masks.placeholders) // _AT_ONCE)


def _lies_in(removed: Collection[int], contents: Sequence[int | None], violation: Violation) -> bool:
    """Tell whether all that a violation points at is in contents from which something was removed."""
    indexes = [message_of(address) for address in violation.ranges]
    return bool(indexes) and all(
        index is not None and index < len(contents) and contents[index] in removed for index in indexes
    )
