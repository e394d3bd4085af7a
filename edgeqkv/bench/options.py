"""Numbers, sizes and times as a user writes them."""

import re

from edgeqkv.errors import EdgeQKVError

SIZES = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_RANGE = re.compile(r"(\d+)-(\d+)(?:([+*])(\d+))?")
_MOST = 1000


def numbers(text: str, option: str) -> list[int]:
    """Comma lists and ranges: "1,2,4", "1-4" (by one), "0-1000+250", "64-1000*4".

    Both ends of a range are included, the last one too where the steps do not meet it: 64-1000*4 is 64, 256, 1000.
    """
    out: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if part.strip().isdigit():
            out.append(int(part))
        elif match:
            out += _range(int(match[1]), int(match[2]), match[3] or "+", int(match[4] or 1), option, part)
        else:
            raise EdgeQKVError(
                f"{option} takes whole numbers and ranges separated by commas (1,2,4 or 128-2048*2), found {text!r}"
            )
    return list(dict.fromkeys(out))


def _range(first: int, last: int, sign: str, step: int, option: str, part: str) -> list[int]:
    if last < first or step < 1 or (sign == "*" and (step < 2 or first < 1)):
        raise EdgeQKVError(f"{option}: the range {part!r} has no end; write first-last+step or first-last*factor")
    out = []
    while first < last:
        out.append(first)
        if len(out) > _MOST:
            raise EdgeQKVError(f"{option}: the range {part!r} has more than {_MOST} numbers; give it a larger step")
        first = first + step if sign == "+" else first * step
    return [*out, last]


def parse_size(text: str | None, option: str) -> int | None:
    """Bytes behind "512MiB", "2GiB" or "1500000000"."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    unit = SIZES.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise EdgeQKVError(f"{option} takes a size like 512MiB or 2GiB, found {text!r}")
    return int(float(match[1]) * unit)


def parse_percent(text: str, option: str) -> float:
    """0.03 behind "3%" or "0.03"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(%?)", text.strip())
    if match is None:
        raise EdgeQKVError(f"{option} takes a share like 3% or 0.03, found {text!r}")
    return float(match[1]) / (100 if match[2] else 1)


def parse_time(text: str, option: str) -> float:
    """Seconds behind "90", "90s", "5m" or "1h"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if match is None:
        raise EdgeQKVError(f"{option} takes a time like 90s, 5m or 1h, found {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def chosen(text: str | None, option: str, known: tuple[str, ...]) -> tuple[str | None, ...]:
    """Names out of ``known``, separated by commas; (None,) when nothing was said."""
    if text is None:
        return (None,)
    names = tuple(dict.fromkeys(text.split(",")))
    if not set(names) <= set(known):
        raise EdgeQKVError(f"{option} takes {' and '.join(known)} separated by commas, found {text!r}")
    return names
