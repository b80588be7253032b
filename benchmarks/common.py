"""What the benchmarks share: one row per measurement in results.csv, with spread, hardware and commit."""
import statistics
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

from snakecls.workflow.environment import describe_environment, describe_hardware
from snakecls.workflow.run_folder import append_row

RESULTS = Path(__file__).parent / "results.csv"


@cache
def first_environment() -> dict:
    "Describe the machine and the commit once: the first row written is a change of its own."
    return describe_environment(Path(__file__).parent)


def record(benchmark: str, arm: str, values: list[float], *, unit: str, note: str = "") -> dict:
    "Append a row: what was measured, n, mean, sd, minimum, median and maximum."
    environment = first_environment()
    git = environment.get("git") or {}
    row = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"), "benchmark": benchmark, "arm": arm, "unit": unit, "n": len(values),
        "mean": round(statistics.mean(values), 4), "sd": round(statistics.stdev(values), 4) if len(values) > 1 else "",
        "min": round(min(values), 4), "median": round(statistics.median(values), 4), "max": round(max(values), 4),
        "note": note, "hardware": describe_hardware(environment), "commit": (git.get("commit") or "")[:9] + ("+" if git.get("dirty") else ""),
    }
    append_row(RESULTS, row)
    print({key: row[key] for key in ("benchmark", "arm", "unit", "n", "mean", "sd", "min", "median", "max")}, flush=True)
    return row
