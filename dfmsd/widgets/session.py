"""What a page and a laboratory say to each other: a message comes in, a frame or a file goes out.

The page (`lab.js`) speaks the same way to a notebook (`mask_lab`) and to the app (`app`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from dfmsd.widgets.lab import CHOICES, STOPS
from dfmsd.widgets.laboratory import Laboratory
from dfmsd.widgets.mosaic import Panel, draw, layer_image, png

LABELS = {"image": "picture", "detector": "detector", "stride": "level"}
LABELS |= {"attention_on": "attention on", "temperature": "temperature τ", "ratio": "mask ratio"}
LABELS |= {"ratio_channel": "channel ratio", "select": "select", "strength": "strength β"}
LABELS |= {"cutoff": "cut-off ρ", "regions": "energy in", "student": "feature of"}
LABELS |= {"beside": "beside it", "channel": "channel"}
"""Control → its label, in the order of the page."""
READ = ("attention", "rank", "energy", "enhanced", "keep")  # maps that the pointer reads
_PICTURE = Panel("picture", "picture")
Message, Buffers = dict[str, Any], list[bytes]


class Upload(BytesIO):
    """The bytes of a picture, which errors call by the picture's name."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self._name = name

    def __str__(self) -> str:
        """The name of the file that the visitor gave."""
        return self._name


def answer(
    lab: Laboratory, message: Mapping[str, Any], buffers: Sequence[bytes] = ()
) -> tuple[Message, Buffers]:
    """What a message does and brings: a frame, or a file to save.

    `kind` is "set" (with `values`), "picture" (`name`, and the file as buffer), "pin", "reset",
    "png" (with `boxes`), "gif" (with the `slider`), or "hello". A mistake changes nothing, and the
    frame tells of it in `error`.
    """
    kind, error = message.get("kind"), ""
    try:
        if kind == "set":
            Laboratory.set(lab, **message["values"])  # a widget's own `set` tells its page
        elif kind == "picture":
            Laboratory.set(lab, image=Upload(bytes(buffers[0]), str(message["name"])[-80:]))
        elif kind in ("pin", "reset"):
            getattr(Laboratory, kind)(lab)
        elif kind == "png":
            page = png(lab.picture(boxes=message.get("boxes", True)))
            return {"kind": "file", "name": "masks.png", "type": "image/png"}, [page]
        elif kind == "gif":
            name = str(message["slider"])
            file = {"kind": "file", "name": f"masks-{name}.gif", "type": "image/gif"}
            return file, [lab.gif(name)]
    except (ValueError, RuntimeError, KeyError, IndexError, TypeError) as problem:
        error = str(problem) or type(problem).__name__
    return frame(lab, error=error, known=message.get("picture"))


def frame(lab: Laboratory, *, error: str = "", known: Any = None) -> tuple[Message, Buffers]:
    """The present state for a page that has the picture `known` already."""
    maps, scene, buffers = lab.panels(), lab.scene, []

    def put(data: bytes) -> int:
        buffers.append(data)
        return len(buffers) - 1

    panels = [
        {
            "name": panel.name,
            "caption": panel.caption,
            "palette": panel.palette,
            "window": panel.window or scene.window,
            "limits": panel.limits and [f"{limit:.3g}" for limit in panel.limits],
            "at": None if panel.layer is None else put(png(layer_image(panel))),
        }
        for panel in lab.drawn()
    ]
    picture = {"key": id(scene.image), "size": list(scene.image.shape[1:]), "window": scene.window}
    picture["at"] = (
        None
        if picture["key"] == known
        else put(png(draw(scene, _PICTURE, max(scene.image.shape), boxes=False)))
    )
    words, *lines = lab.readout().splitlines()
    return {
        "kind": "frame",
        "error": error,
        "controls": _controls(lab),
        "paths": lab.paths,
        "picture": picture | {"boxes": scene.boxes.tolist()},
        "legend": "dashed: the detector's own boxes" if scene.detected else "dashed: true boxes",
        "panels": panels,
        "grid": list(maps["keep"].shape),
        "count": int(scene.context.valid(maps["keep"][None, None]).sum()),
        "cells": {name: put(maps[name].numpy().tobytes()) for name in READ},
        "channels": len(maps["channels"]),
        "sentence": words,
        "lines": lines,
        "texts": {"settings": lab.settings().text(), "code": lab.code()},
    }, buffers


def _controls(lab: Laboratory) -> list[Message]:
    """Every control's value, what it offers, and why it cannot act, if so."""
    options, values, idle = lab.options() | CHOICES, lab.values(), lab.settings().idle()
    stops = STOPS | {"channel": range(len(lab.panels()["channels"]))}
    found = []
    for name, label in LABELS.items():
        made = {"name": name, "label": label, "value": values[name], "idle": idle.get(name)}
        if name in stops:
            made |= {"stops": list(stops[name]), "digits": 2 if name in STOPS else 0}
        else:
            made["options"] = list(options[name])
            made["idle"] = "there is no other" if len(options[name]) == 1 else made["idle"]
        found.append(made)
    return found
