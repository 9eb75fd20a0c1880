"""Students that are shipped with the record of their training, for those who do not want to train.

`data/students.py` makes them.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from dfmsd.experiments.records import append_record, read_records

if TYPE_CHECKING:
    from dfmsd.experiments.runs import Run

FOLDER = Path("data/students")  # seen from the project's folder, as the shipped teachers are


def adopt(run: Run) -> bool:
    """Whether a shipped student's record is of this very run; the run is then finished by it.

    Its files are copied to where the run would have left its own. A run that has begun is left
    alone.
    """
    record = run.among(read_records(FOLDER / "records.jsonl"))
    if record is None:
        return False
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(run.folder.with_suffix(".lock")):  # of another notebook, which may adopt it too
        if run.folder.exists():
            return run.done()
        with tempfile.TemporaryDirectory(dir=run.folder.parent) as place:
            copy = shutil.copytree(FOLDER / record["shipped"], Path(place) / "student")
            append_record(run.records, record)
            copy.replace(run.folder)  # last: without its files, a run with a record is not finished
    return True
