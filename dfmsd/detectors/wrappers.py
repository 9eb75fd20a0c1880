"""The tensors of a model inside what training scripts save: state_dict, module., EMA and others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from dfmsd.detectors.errors import CheckpointError

_MOST, _LONGEST, _DEEPEST = 100_000, 400, 16  # values of a file, characters and parts of a name


def flatten(content: Mapping[str, Any]) -> dict[str, Tensor | None]:
    """Dotted name → tensor of nested dicts; None stands for anything else.

    Raises CheckpointError for more than 100,000 values or a name of more than 400 characters.
    """
    found: dict[str, Tensor | None] = {}
    pending = [(str(name), value) for name, value in content.items()]
    for name, value in pending:  # it grows on the way
        if len(name) > _LONGEST:
            raise CheckpointError(f"a name of more than {_LONGEST} characters: {name[:40]}…")
        if len(pending) > _MOST:
            raise CheckpointError(f"more than {_MOST} values")
        if isinstance(value, dict):
            pending += [(f"{name}.{k}", v) for k, v in value.items() if isinstance(k, str | int)]
        else:
            found[name] = value if isinstance(value, Tensor) else None
    return found


def select(
    values: Mapping[str, Tensor | None], wanted: Callable[[str], bool], prefix: str = ""
) -> tuple[dict[str, Tensor], str]:
    """The tensors of a model without the wrappers before their names, and a line on the rest.

    Choice: the wrapper ("state_dict.", "model.module.", "_orig_mod.", any other) is what stands
    before most of the names that are `wanted`; of equals a running average of the weights (EMA)
    comes last. `prefix` admits only names that begin so. The line is empty when all were taken as
    they are. Raises CheckpointError when nothing that is wanted begins with `prefix`.
    """
    counts: Counter[str] = Counter()
    for name in values:
        parts = name.split(".") if name.startswith(prefix) else []
        for number in range(min(len(parts), _DEEPEST)):
            if wanted(".".join(parts[number:])):
                counts[".".join([*parts[:number], ""])] += 1
    if prefix and not counts:
        raise CheckpointError(f"prefix {prefix}: nothing wanted there, found {sample(values)}")
    most = max(counts.values(), default=0)
    best = [name for name in counts if counts[name] == most] or [""]
    before = min(best, key=lambda name: "ema" in name.lower())
    taken = {n: v for n, v in values.items() if v is not None and n.startswith(before)}
    left = {n.removeprefix(before).split(".")[0]: None for n in values if n not in taken}
    said = {"taken from": [before.rstrip(".")] if before else [], "left out": left}
    said["as complete is"] = [n.rstrip(".") for n in best if not n.startswith(before)][:1]
    line = "; ".join(f"{word} {sample(names)}" for word, names in said.items() if names)
    return {name.removeprefix(before): value for name, value in taken.items()}, line


def sample(names: Iterable[str], *, count: int = 5) -> str:
    """The first of `names` with commas, and how many more there are; "nothing" for none."""
    first = [name if len(name) <= 160 else f"{name[:159]}…" for name in names]
    more = [f"and {len(first) - count} more"] if len(first) > count else []
    return ", ".join(first[:count] + more) or "nothing"
