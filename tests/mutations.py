"""Files that are nearly right: JSON changed in its structure, bytes changed in their content."""

from __future__ import annotations

import copy

ODD = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**70),
    10**400,
    0.5,
    -1e308,
    float("inf"),
    float("nan"),
    "",
    "a\u0000b",
    "\ud800",
    "../../outside.png",
    "/etc/passwd",
    "x" * 5000,
    "\x1b[31m",
    [],
    {},
    [[[[[]]]]],
    [0, 0, 0, 0],
    [1e400, -5, 3, 2],
    {"id": {}},
]


def places(value):
    """Every (container, key) below a JSON value."""
    items = ()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items:
        yield value, key
        yield from places(inner)


def mutate_json(value, draw):
    """A copy with one to four changes: another value, one left out, twice, renamed or moved."""
    value = copy.deepcopy(value)
    for _ in range(draw.randint(1, 4)):
        found = list(places(value))
        if not found:
            return draw.choice(ODD)
        owner, key = draw.choice(found)
        kind = draw.randrange(6)
        if kind < 3:
            owner[key] = copy.deepcopy(draw.choice(ODD))
        elif kind == 3:
            del owner[key]
        elif kind == 4 and isinstance(owner, list):
            owner.insert(key, copy.deepcopy(owner[key]))
        else:
            other, place = draw.choice(found)
            owner[key] = copy.deepcopy(other.get(place) if isinstance(other, dict) else None)
    return value


def mutate_bytes(content, draw):
    """The bytes with one to four changes: others, fewer, more, the same twice, or the end gone."""
    content = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(content) + 1)
        count = draw.choice([1, 1, 2, 8, 100])
        kind = draw.randrange(5)
        if kind == 0:
            content[at : at + count] = draw.randbytes(len(content[at : at + count]))
        elif kind == 1:
            del content[at : at + count]
        elif kind == 2:
            content[at:at] = draw.choice([draw.randbytes(count), b"\xff" * count, b"\0" * count])
        elif kind == 3:
            content[at:at] = content[at : at + count]
        else:
            del content[at:]
    return bytes(content)
