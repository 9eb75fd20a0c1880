"""Every measure as a ratio of CPU time: `make bench`, or `python benchmarks`.

Each file runs in a process of its own, one after the other; the table goes to the screen and to
`build/bench.md`, the records to `data/results/bench.jsonl`. With `--quick` two files run at a time,
small and few: it shows that everything runs, and measures nothing; its records go to `build/`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ratio import ROOT, Measure, table

from dfmsd.experiments.records import append_record, environment, read_records

FILES = ("loss", "step", "data", "evaluation", "imports", "growth")


def run(name: str, quick: bool) -> tuple[bool, list[dict]]:
    """Whether the file `name` ended well, and the records that it wrote."""
    records = ROOT / "build" / f"bench-{name}.jsonl"
    records.unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--records", str(records)]
    done = subprocess.run(command + ["--quick"] * quick, stdout=subprocess.DEVNULL)
    return done.returncode == 0, read_records(records)


def main() -> None:
    """Run all, print and record; exits with 1 when a file failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small and few: only to see it run")
    parser.add_argument("--records", type=Path, help="another JSON-lines file for the records")
    options = parser.parse_args()
    build, began = ROOT / "build", time.time()
    build.mkdir(exist_ok=True)
    usual = build / "bench-quick.jsonl" if options.quick else ROOT / "data/results/bench.jsonl"
    with ThreadPoolExecutor(2 if options.quick else 1) as pool:
        results = list(pool.map(lambda name: run(name, options.quick), FILES))
    records = [record for _, found in results for record in found]
    for record in records:
        append_record(options.records or usual, record)
    fields = Measure.__dataclass_fields__
    where = environment()
    versions = ", ".join(f"{k} {where['versions'][k]}" for k in ("python", "torch", "torchvision"))
    text = table([Measure(**{field: record[field] for field in fields}) for record in records])
    text += f"\n\n{where['processor']}, {where['cores']} cores, 1 thread; {versions}; "
    text += f"commit {where['commit']}; load {os.getloadavg()[2]:.1f} over 15 minutes; "
    text += (
        f"{(time.time() - began) / 60:.1f} minutes" + "; --quick: no measurement" * options.quick
    )
    (build / "bench.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    failed = [name for name, (well, _) in zip(FILES, results, strict=True) if not well]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
