"""What AWS says of an account: its limits and its standing, if anybody lets us ask.

The optional extra ``[aws]``. boto3 enters here and nowhere else, by ``vendor``, and is imported
only when something is asked, in a thread. ``words`` says what can be answered, ``place`` which
part of AWS an SMTP host belongs to, ``asking`` asks within a bound, ``prior`` says what the
answer is worth to the shaper. It may not know shapers, mail or the spool.

What AWS says is a start value and a line in ``status``, never the truth: nothing is held, bounced
or refused because of it. Everything that can be missing (the extra, credentials, the right to
ask, the network) is a ``Silence``, which is a value and no error.
"""

from relay.aws.asking import ANSWER_MAX_S, Asker
from relay.aws.place import Endpoint, account_of_key, endpoint_of
from relay.aws.prior import CONFIDENCE, prior
from relay.aws.words import RATE_MAX_PER_S, Account, Enforcement, Silence, troubles

__all__ = [
    "ANSWER_MAX_S",
    "CONFIDENCE",
    "RATE_MAX_PER_S",
    "Account",
    "Asker",
    "Endpoint",
    "Enforcement",
    "Silence",
    "account_of_key",
    "endpoint_of",
    "prior",
    "troubles",
]
