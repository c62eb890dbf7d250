"""What AWS's number is worth to the shaper.

Pure. AWS says that a rate above the maximum cannot be sustained and that the rate it accepts "can
be less than the maximum send rate" (*documented*, "Managing your Amazon SES sending limits");
other senders may share it. So a number is a place to start from while nothing is learned, and
whenever it changes; else the shaper's own measurements stand.

The number is handed over as it is, not with something taken off. Measured in the model
(tests/bench/shaping; 14, 50 and 200/s, 30 and 250 ms, a bucket of one second; the worst of the
first minute): where AWS's number is the true one, use 1.0 with 0.1 to 0.8 % refused; where only
90 or 75 % of it can be had, use still 1.0, with 0.2 to 1.5 and 0.2 to 2.6 % refused. Starting from
less costs more where the number is right, since the way up has to be searched for.
"""

from __future__ import annotations

CONFIDENCE = 0.9
"""How sure the shaper is to be: as of a number that an operator set."""

SAME_SHARE = 0.01
"""A number that moved by less, as a share, has not changed."""


def prior(told_per_s: float | None, before_per_s: float | None, limit_per_s: float | None) -> bool:
    """Whether the shaper is to start over from ``told_per_s``, what AWS says now.

    ``before_per_s`` is what AWS said before, in an earlier run if need be (None: nothing yet);
    ``limit_per_s`` is the limit that the shaper knows (None: none). A changed number counts only
    in the direction in which it moved: if others share the account, ours may be far below a
    maximum that falls.
    """
    if told_per_s is None:
        return False
    if limit_per_s is None:
        return True
    if before_per_s is None or abs(told_per_s / before_per_s - 1) <= SAME_SHARE:
        return False
    risen = told_per_s > before_per_s
    return told_per_s > limit_per_s if risen else told_per_s < limit_per_s
