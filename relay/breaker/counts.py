"""How often each campaign or sender was refused of late, by what was said.

Leaky counts: each refusal adds one, each acceptance of the same campaign or sender takes a
share away, so that a count grows only while refusals come faster than that share of the mail.
Plain totals would stop a long campaign for its usual crumbs of refusals; consecutive ones
would never see a fault that hits every other message.

Refusals are told apart by text with everything particular to one message masked, for
``Illegal address <a@x>`` and ``Illegal address <b@y>`` are one trouble.

Bounded: ``SUBJECTS_MAX`` subjects, of which the one refused longest ago is forgotten first;
``TEXTS_MAX`` texts for each, after which all new ones share one count, so that a text that
masking does not tame still trips; ``TEXT_CHARS_MAX`` characters for each text. Subjects
and texts whose count has leaked away are not kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

SUBJECTS_MAX = 1_000
"""Campaigns and senders with refusals on their count: far more than send at once."""
TEXTS_MAX = 16
"""Different troubles of one campaign at one time; SES has about twenty content texts in all."""
TEXT_CHARS_MAX = 200
"""The longest refusal seen that names no addresses has 170 characters (facts, 2)."""

_OTHER = "other texts"
# In this order: what contains an address goes before the address, ids go before digits.
_MASKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\barn:[^\s'`\"]+"), "ARN"),
    (re.compile(r"<[^\n]*@[^\n]*>"), "ADDRESS"),
    (re.compile(r"\"[^\"\n]*\"@[^\s'\",;<>]+"), "ADDRESS"),
    (re.compile(r"[^\s'\",;:<>]+@[^\s'\",;:<>]+"), "ADDRESS"),
    (re.compile(r"\b[0-9a-f]{8,}(?:-[0-9a-f]+)*\b", re.IGNORECASE), "ID"),
    (re.compile(r"\d+"), "#"),
)


def masked(text: str) -> str:
    """``text`` without addresses, ARNs, ids and numbers, and no longer than is kept."""
    for pattern, mask in _MASKS:
        text = pattern.sub(mask, text)
    return text[:TEXT_CHARS_MAX]


@dataclass(slots=True)
class _Levels:
    """The counts of one subject: by text, and of recipients refused on their own."""

    texts: dict[str, float] = field(default_factory=dict)
    recipients: float = 0.0


class Counts:
    """The leaky counts of all subjects of one upstream; a subject is a hold's key."""

    def __init__(self, leak: float) -> None:
        """Each acceptance takes ``leak`` off: the share of refusals that is put up with."""
        self._leak = leak
        self._by_subject: dict[str, _Levels] = {}

    def __len__(self) -> int:
        """Subjects with any count at all."""
        return len(self._by_subject)

    def refused(self, subject: str, text: str) -> float:
        """Count one refused message; the count of its text now."""
        texts = self._levels(subject).texts
        if text not in texts and len(texts) >= TEXTS_MAX:
            text = _OTHER
        texts[text] = texts.get(text, 0.0) + 1
        return texts[text]

    def recipients_refused(self, subject: str, recipients: int) -> float:
        """Count recipients refused on their own account, whatever the text; the count now."""
        levels = self._levels(subject)
        levels.recipients += recipients
        return levels.recipients

    def accepted(self, subject: str, recipients: int) -> None:
        """Let the subject's counts leak for one accepted message to ``recipients``."""
        levels = self._by_subject.get(subject)
        if levels is None:
            return
        leaked = {text: level - self._leak for text, level in levels.texts.items()}
        levels.texts = {text: level for text, level in leaked.items() if level > 0}
        levels.recipients = max(0.0, levels.recipients - self._leak * recipients)
        if not levels.texts and not levels.recipients:
            del self._by_subject[subject]

    def forget(self, subject: str) -> None:
        """Begin at nothing again."""
        self._by_subject.pop(subject, None)

    def _levels(self, subject: str) -> _Levels:
        """The subject's counts, now the last to be forgotten."""
        levels = self._by_subject.pop(subject, None) or _Levels()
        self._by_subject[subject] = levels
        if len(self._by_subject) > SUBJECTS_MAX:
            del self._by_subject[next(iter(self._by_subject))]
        return levels
