"""Arrivals for `online.py`: at each of them, its moment is written to stdout as a double.

    python online_arrivals.py RATE SECONDS

The gaps are random as those of independent callers are (a Poisson process), and the same in each
run. The moments are those of the plan, by the system's monotonic clock, however late this process
is: what is behind is written at once.
"""

import os
import random
import struct
import sys
import time
from collections.abc import Iterator

LEAD_SECONDS = 0.05

AT_ONCE = 512
"""Arrivals in one piece at most: as much as a pipe takes whole."""


def moments(rate: float, seconds: float) -> Iterator[float]:
    numbers = random.Random(7)
    now = time.monotonic() + LEAD_SECONDS
    end = now + seconds
    while now < end:
        yield now
        now += numbers.expovariate(rate)


def main() -> None:
    due: list[float] = []
    for moment in moments(float(sys.argv[1]), float(sys.argv[2])):
        if due and (len(due) == AT_ONCE or moment > time.monotonic()):
            send(due)
        ahead = moment - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
        due.append(moment)
    send(due)


def send(due: list[float]) -> None:
    data = memoryview(struct.pack(f"{len(due)}d", *due))
    due.clear()
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    main()
