"""``relay demo``: the main job on this machine, watched, and audited at the end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from relay.service import demo as play

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

LINE_EVERY_S = 5.0
"""How often a line is printed where nothing can be drawn: a pipe, a file."""
PLAIN_WIDTH = 100

_WISH = play.Wish()
_OF_THE_LIMIT = "limit (not told)"


@click.command("demo")
@click.option(
    "--messages",
    type=click.IntRange(min=1, max=1_000_000),
    default=_WISH.messages,
    show_default=True,
    help="Campaign messages of 40 kB, in two campaigns together.",
)
@click.option(
    "--limit",
    type=click.FloatRange(min=1, max=10_000),
    default=_WISH.limit_per_s,
    show_default=True,
    help="Recipients a second that the pretended account allows at first.",
)
@click.option("--seed", type=int, help="Makes the mail and the double of SES repeatable.")
@click.option("--json", "as_json", is_flag=True, help="The audit as one JSON object, nothing else.")
def demo(messages: int, limit: float, seed: int | None, as_json: bool) -> None:
    """Show the relay at work, without Amazon: no mail leaves this machine.

    A double of Listmonk's mailer hands two campaigns and password resets to a real relay as
    fast as it can; a double of SES takes them at a limit that the relay is not told, and that
    is lowered on the way. At the end the double's ledger says what arrived.

    Exit code 0 if everything arrived once, 1 if anything was lost, came twice or was refused.
    """
    wish = play.Wish(messages=messages, limit_per_s=limit, seed=seed)
    console = Console(highlight=False)
    if as_json:
        audit = play.run(wish, lambda _: None)
        click.echo(json.dumps(audit.as_json()))
    elif console.is_terminal:
        console.print(_opening(wish))
        with Live(console=console, auto_refresh=False) as live:
            audit = play.run(wish, lambda now: live.update(_picture(now), refresh=True))
        console.print(_verdict(audit))
    else:
        plain = Console(highlight=False, width=PLAIN_WIDTH, no_color=True)
        plain.print(_opening(wish))
        audit = play.run(wish, _lines(plain))
        plain.print()
        plain.print(_verdict(audit))
    raise SystemExit(0 if audit.is_good else 1)


def _opening(wish: play.Wish) -> str:
    later = wish.limit_per_s * play.CHANGE_FACTOR
    return (
        f"{wish.messages} messages of 40 kB in two campaigns and a password reset every half\n"
        f"second, into a double of SES that takes {wish.limit_per_s:g} a second, from half-way on"
        f" {later:g}.\nThe relay is told neither. No mail leaves this machine.\n"
    )


def _picture(now: play.Progress) -> RenderableType:
    """The live view."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold")
    rows.add_column(width=28)
    rows.add_column()
    for name, done, fact in (
        ("accepted", now.accepted, f"{now.accepted} of {now.total} from Listmonk, on disk"),
        ("sent", now.delivered, f"{now.delivered} taken by SES, done in {_time(now.eta_s)}"),
    ):
        rows.add_row(name, ProgressBar(total=now.total, completed=done, width=28), fact)
    rate = min(now.delivered_per_s, 1.5 * now.limit_per_s)
    rows.add_row(
        "rate",
        ProgressBar(total=1.5 * now.limit_per_s, completed=rate, width=28),
        f"{now.delivered_per_s:.1f}/s, {_OF_THE_LIMIT} {now.limit_per_s:g}/s, {_learned(now)}",
    )
    rows.add_row("refused", Text(f"{now.throttled} x 454"), _share(now))
    for lane, text in _lanes(now).items():
        rows.add_row("waiting", Text(lane), text)
    foot = Text(f"{now.elapsed_s:.0f} s  dashboard meanwhile: {now.dashboard}", style="dim")
    return Group(rows, foot)


def _lines(console: Console) -> Callable[[play.Progress], None]:
    """Print a moment now and then, for where nothing can be drawn."""
    next_at = 0.0

    def show(now: play.Progress) -> None:
        nonlocal next_at
        if now.elapsed_s >= next_at:
            next_at = now.elapsed_s + LINE_EVERY_S
            lanes = ", ".join(f"{lane} {text}" for lane, text in _lanes(now).items())
            console.print(
                f"{now.elapsed_s:4.0f} s  accepted {now.accepted:6}  sent {now.delivered:6}"
                f"  {now.delivered_per_s:6.1f}/s of {now.limit_per_s:g}/s  454: {now.throttled}"
                f"  {lanes}",
                soft_wrap=True,
            )

    return show


def _learned(now: play.Progress) -> str:
    upstream: dict[str, Any] = now.status["upstreams"][0]
    limit = upstream["limit_per_s"]
    known = f"learned {limit:.1f}/s" if limit else "none learned yet"
    return f"{known}, {upstream['phase']}"


def _share(now: play.Progress) -> str:
    tried = now.delivered + now.throttled
    return f"{now.throttled / tried:.2%} of what was tried" if tried else "nothing tried yet"


def _lanes(now: play.Progress) -> dict[str, str]:
    """What waits, by lane, in words."""
    streams = now.status["streams"]
    lanes = {stream["lane"]: 0 for stream in streams}
    for stream in streams:
        lanes[stream["lane"]] += stream["waiting"]
    return {lane: str(count) for lane, count in sorted(lanes.items())}


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:.0f} s"


def _verdict(audit: play.Audit) -> Table:
    """The audit, a line each, good or bad."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="bold")
    table.add_column()
    for figure, meaning in _figures(audit):
        table.add_row(figure, meaning)
    return table


def _figures(audit: play.Audit) -> list[tuple[str, str]]:
    use = "?" if audit.use is None else f"{audit.use:.1%}"
    limits = " then ".join(f"{limit:g}/s" for limit in audit.limits_per_s)
    rows = [
        (str(audit.accepted), f"accepted from Listmonk, in {audit.intake_s:.1f} s"),
        (str(audit.delivered), f"delivered to SES, in {audit.duration_s:.1f} s"),
        (str(audit.lost), "lost"),
        (str(audit.twice), "twice"),
        (str(audit.attempts_by_throttling), "attempts spent on throttling"),
        (use, f"of the limit used ({limits}) after the first 10 s"),
        (f"{audit.refused_share:.2%}", f"refused with 454 ({audit.throttled}), all sent again"),
        (
            f"{audit.transactional_slowest_s:.2f} s",
            f"the slowest of {audit.transactional} transactional mails, from 250 to SES",
        ),
        (
            f"{audit.spool_bytes_per_message / 1000:.1f} kB",
            f"of spool a message of {audit.content_bytes_per_message / 1000:.1f} kB",
        ),
        (
            f"{audit.relay_cpu_share:.0%}",
            f"of a processor for the relay, {audit.doubles_cpu_share:.0%} for the two doubles",
        ),
    ]
    if audit.waiting:
        rows.insert(3, (str(audit.waiting), "STILL WAITING in the spool: nothing moved any more"))
    if audit.refused_at_intake:
        rows.insert(3, (str(audit.refused_at_intake), "REFUSED to Listmonk: it loses those"))
    return [*rows, ("limited", f"by {audit.limited_by}")]
