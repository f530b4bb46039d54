#!/usr/bin/env python3
"""Writes oracle.tsv: due times by another hand, for tests/zones.rs.

Run it with Python 3.9 or later and the system's time zone database:

    python3 oracle.py > oracle.tsv

It shares nothing with Farrier: its own cron fields, Python's zoneinfo, the system's database, and a walk over every minute.
Each line is: zone, pattern, rule, first and last second (UTC), the number of due times, the SHA-256 of them all (decimal seconds,
one a line), and those within a day of a change of the clock.
"""

import hashlib
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

UTC = timezone.utc
MINUTE = timedelta(minutes=1)
ZONES = [
    ("Europe/Berlin", 2024), ("America/New_York", 2024), ("Australia/Lord_Howe", 2024), ("America/Sao_Paulo", 2015),
    ("Africa/Casablanca", 2021), ("Asia/Kolkata", 2024), ("Asia/Beirut", 2021), ("Atlantic/Azores", 2024),
]
PATTERNS = [
    ("30 2 * * *", "once"), ("0 0 * * *", "once"), ("15,45 1-3 * * *", "once"), ("59 23 * * 6", "once"),
    ("0 3 1 * *", "once"), ("*/15 * * * *", "as_shown"), ("0 */2 * * *", "as_shown"), ("7 * * * 0", "as_shown"),
    ("30 2 * * *", "as_shown"), ("*/20 * * * *", "once"),
]


def field(text, low, high):
    values = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, last = (low, high) if span == "*" else (int(span.split("-")[0]), int(span.split("-")[-1]))
        values.update(range(first, last + 1, int(step or 1)))
    return values


def matcher(pattern):
    minute, hour, day, month, weekday = pattern.split()
    minutes, hours = field(minute, 0, 59), field(hour, 0, 23)
    days, months, weekdays = field(day, 1, 31), field(month, 1, 12), field(weekday, 0, 6)
    return lambda t: (t.minute in minutes and t.hour in hours and t.day in days and t.month in months
                      and (t.weekday() + 1) % 7 in weekdays)


def moment(naive, zone):
    """The first moment at which the clock shows it, or the first after it when it never does."""
    while True:
        utc = naive.replace(tzinfo=zone, fold=0).astimezone(UTC)
        if utc.astimezone(zone).replace(tzinfo=None) == naive:
            return utc
        naive += MINUTE


def main():
    for name, year in ZONES:
        zone = ZoneInfo(name)
        first, last = datetime(year, 1, 1, 12, tzinfo=UTC), datetime(year + 5, 1, 1, 12, tzinfo=UTC)
        shown, changes, at, before = [], [], first, None
        while at <= last:
            local = at.astimezone(zone)
            if before is not None and local.utcoffset() != before:
                changes.append(at)
            before = local.utcoffset()
            shown.append((at, local.replace(tzinfo=None)))
            at += MINUTE
        wall, t = [], (first - timedelta(days=2)).replace(tzinfo=None)
        while t <= (last + timedelta(days=2)).replace(tzinfo=None):
            wall.append(t)
            t += MINUTE
        for pattern, rule in PATTERNS:
            fits = matcher(pattern)
            if rule == "as_shown":
                due = [at for at, local in shown if fits(local)]
            else:
                due = sorted({moment(t, zone) for t in wall if fits(t)})
            due = [int(at.timestamp()) for at in due if first < at <= last]
            digest = hashlib.sha256("".join(f"{at}\n" for at in due).encode()).hexdigest()
            near = [at for at in due
                    if any(abs(at - change.timestamp()) <= 3 * 3600 for change in changes)]
            print(name, pattern, rule, int(first.timestamp()), int(last.timestamp()), len(due), digest,
                  ",".join(map(str, near)), sep="\t")


main()
