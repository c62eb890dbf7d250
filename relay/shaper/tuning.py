"""The controller's numbers, each with its reason; tried in the model bench (tests/bench/shaping).

Shares are of the limit or of what was tried, ``_S`` seconds, "messages" the usual size of one
(``unit`` recipients). Where a number is a bar of accuracy against cost, both sides are named.
"""

from __future__ import annotations

from math import inf

# ---- searching and settling

SEARCH_GROWTH, RAISE_GROWTH, SETTLE_GROWTH = 0.5, 1.0, 0.25
"""Growth of the rate's logarithm a second: 10/s to 500/s takes 8 s. After a proven raise it may
be faster; after a cut it is slow, so that little is refused before the reading."""

GROWTH_STEP_MAX = 0.1
"""One message never raises the rate by more than a tenth, however long it took."""

SETTLE_MESSAGES = 24.0
"""Nor does settling grow by e within fewer messages: a cycle must hold enough for a reading."""

SEARCH_REFUSED = 3
"""Refusals that end a search: two come together by chance where one in 200 is refused."""

SETTLE_S = 0.5
"""After a cut nothing is judged for so long: a fixed window may refuse all of a third of a second,
and cuts upon cuts would end at the floor."""

FROM_ABOVE = 1.06
"""A first reading is taken for so much more: an estimate that is too high is found out by cheap
refusals, one that is too low only fills the bucket."""

# ---- braking

BRAKE = 0.15
"""Share of the rate that is sent while the replies to what is under way come in."""

FEW = 4.0
"""With fewer messages under way there is nothing to wait for."""

HEARD_MAX, HEARD_FORGET = 4, 16
"""Refusals heard, in any order, that end a search at once; one is forgotten in so many accepts."""

HARD_REFUSED, HARD_SHARE, HARD_S = 4, 0.45, 0.15
"""So many refusals, a share of what was tried over so long a time: the estimate is far off."""

STALE_REFUSED, STALE_SHARE = 4, 0.6
"""The same among what was under way at the last change of rate: that change was too little."""

SEARCH_SHARE_MIN, SEARCH_TRIED_MIN = 0.08, 16.0
"""A search whose brake finds a smaller share refused was ended by chance, and goes on."""

KEPT_MIN, KEPT_SHORT_MIN, KEPT_MAX, GOODPUT_S = 0.15, 0.5, 0.7, 0.25
"""Share of the rate that a cut without a reading keeps; more if it was seen for less than
``GOODPUT_S``: too short a span never sets the estimate."""

SETTLE_WEIGHT_MAX = 16.0
"""Evidence that a reading from a climb counts for at most: it may have filled a small bucket."""

# ---- holding

CRUISE = 0.002
"""Share of the estimate that holding leaves; it lies in the bucket until the next probe."""

MARGIN_NOISE, MARGIN_MAX = 1.3, 0.03
"""Holding leaves so much of the share that chance refuses: where a fixed window or random
traffic refuses in cruise, a little less rate is refused much less."""

SETTLED_WEIGHT = 300.0
"""Messages of evidence from which on a refusal in cruise is chance; before, it is a reading."""

SHARE_WEIGHT, SHARE_PROBE_S = 150.0, 300.0
"""With ``use_max`` below 1 a probe empties a bucket that others use: rarely, once it is known."""

SPARED_MAX = 0.006
"""Share of a cycle that verified noise may have left in the bucket; more is a wrong limit."""

VOID_S = 0.25
"""So much idleness may fill a small bucket; less is only counted."""

BUSY_IDLE_MAX = 0.05
"""Idle share of recent sending above which there is no backlog, hence no growth."""

SETTLE_IDLE_S = 1.0
"""While braking and settling a slow booking may still stand; only longer gaps are idle then."""

SCATTER_MIN, PAUSE_SCATTER = 0.015, 0.8
"""Where others' random mail scatters the readings (Poisson traffic of 30 %: 0.05 to 0.2) by more
than the first, the pause after a refusal lasts for so many standard deviations more: near the
empty mark a wandering bucket refuses again and again. Holding less instead helps nobody: in fixed
windows and beside chance refusals, which scatter readings, too, it costs 3 to 8 % of the limit."""

# ---- probing

BUDGETS = ((10.0, 0.0012), (30.0, 0.0028), (100.0, 0.0034), (inf, 0.0012))
"""Refusals that probes may cost, a recipient accepted, below so many recipients a second. At 14/s
all of 0.3 % would allow a probe in 24 s, and less is a raise found later; at low limits learning
anew costs some of it, at high ones a probe comes soon enough for half."""

LENT, DEBT_MAX, DEBT_NOISY, NOISY_MAX = 3.0, 1.5, 4.0, 0.01
"""Refusals lent to learn a new limit, in recipients, and the most owed, in messages: a costly
surprise must not end the probing for minutes. Where chance refuses a little, up to the last share,
each probe costs two or three, and they are paid, though at 14/s that takes 100 s; where it refuses
more, probes are what keeps the estimate up."""

YOUNG_WEIGHT = 80.0
"""With less evidence for a limit just found nothing is owed: at 0.4 s a message, what was under
way at the first reading would blind an account of 14/s for 40 s. Twice as much costs the bar of a
cut from 25/s."""

GAP_MIN, GAP_MAX = 40.0, 250.0
"""Messages between two probes at least: as many as the estimate's evidence, within these."""

PROBE_MESSAGES, PROBE_S = 44.0, 3.2
"""A probe should meet the limit within so many messages or seconds, whichever is longer."""

PROBE_LENGTHS_MAX = 1.5
"""Nor may it take longer than so many times that, whatever its refusals cost."""

PROBE_EXCESS_MIN, PROBE_EXCESS_FULL, PROBE_EXCESS_MAX = 0.01, 0.08, 0.25
"""A probe goes this share above the estimate: enough to end, little enough to be cheap; at least
the middle one if the bucket may be full."""

PROBE_LATE = 0.8
"""Refusals, in messages, that may be under way when the first one's reply comes."""

PROBE_NOISE = 10.0
"""Excess in terms of the noise: a probe must refuse much more than chance does."""

WANDER_MIN, PROBE_WANDER = 0.01, 2.0
"""A probe counts on so many standard deviations of what others left or took in the cycle, from
this scatter on: else a lucky minute passes for a raise."""

PROBE_ROOM = 1.2
"""So much more than the bucket can hold is sent before a probe counts as outlived."""

PROBE_STEP, PROBE_STEPS_UP = 3.0, 0.35
"""An outlived probe goes on with so many times the excess; from the second on it is a search."""

MET_SCORE = 3.0
"""Log likelihood at which refusals in a noisy probe mean an empty bucket."""

GENTLE, GENTLE_NOISES, GENTLE_NOISY = 0.02, 2.0, 1.5
"""Excess of a gentle probe: the least, in terms of the noise, and how much more than usual is
planned to be used up where there is noise."""

GENTLE_BELOW, GENTLE_MESSAGES, GENTLE_S = 30.0, 600.0, 20.0
"""Messages a second below which buckets are so small that gentle probes are worth it, and for how
many messages or seconds, whichever is longer, one is planned where there is no noise: meanwhile a
raise waits."""

GENTLE_EARLY, GENTLE_LENT = 0.5, 1.0
"""A gentle probe may begin with so many recipients owed, for it takes long; when a probe has lifted
the limit by little, the next one is lent this: a lift is a guess."""

GENTLE_GAP, GENTLE_GAP_MAX, GENTLE_GAP_OFTEN = 2, 16, 4
"""Other probes between two gentle ones: after one that was outlived, at most, and at most where
there is noise or the limit is below ``SMALL_PER_S``."""

GENTLE_FIRST, GENTLE_FIRST_SMALL, SMALL_PER_S = 6, 1, 10.0
"""Probes of a new limit before its first gentle one, and below so many messages a second."""

FULL_S = 3.0
"""Burst, in seconds of the limit, that a bucket of unknown content may hold; *assumed*."""

# ---- low limits

LOW_EXCESS, LOW_STEP, LOW_STEPS = 0.03, 0.97, 8
"""Below ``pacing.LOW_PER_S`` a probe goes so little above, and keeps what it has proved, a step
at a time; after so many steps it grows like any other. Refusals step down by as much."""

LIFTED_WEIGHT = 40.0
"""Messages of evidence that a stepped limit counts for."""

# ---- corrections on trial

CUT_TRIED, TRIAL_TRIED, TRIAL_MAX = 12.0, 32.0, 300.0
"""Messages before a second correction, and before the verdict on one, at least and at most."""

STILL_SHARE = 0.6
"""Part of the refused share that must go on for a correction to have changed nothing."""

NOISE_SHARE_MAX = 0.04
"""More than this is no noise, whatever a trial says."""

LOW_READ = 0.5
"""Below ``pacing.LOW_PER_S`` a lower reading was made by a full bucket, down to half."""

CUT_MIN = 0.2
"""The least share of the limit that one correction leaves."""

DOUBT_NOISE, DOUBT_REFUSED, DOUBT_TRIED_MAX, DOUBT_S = 0.004, 10.0, 750.0, 20.0
"""Noise beyond twice what a trial has verified, that is tried anew: with a lower limit for as
many messages as should refuse so many, if it is noise; for no more than so many messages or
seconds, for no probe goes out meanwhile."""

PROVEN_REFUSED, PROVEN_SHARES = 3, 2.0
"""So many refusals, at no more than so many times the suspected share, end that early: it is
noise. 0.5 % of it, suspected at 0.42 %, pass for a limit in one trial of nine (of 500 messages in
two of seven), suspected at 0.5 % in one of four (computed): two are too few for ``STILL_SHARE``."""

DOUBT_STEP, DOUBT_NOISES = 0.025, 4.0
"""By this share the limit is lowered for that, or by so many times the noise."""

RATE_MAX_PER_S = 1_000_000.0
"""No account sends this fast; a bound for the growth, nothing else."""
