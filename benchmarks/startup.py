"""How long every command takes to start, and which heavy modules it loads.

    python benchmarks/startup.py [--run RUN --picture FILE] [--repeats 5]

`--help` of each command, and with RUN and FILE `predict` of one picture; the median of the
repeats, after one that warms the disk. Prints a Markdown table.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time

HEAVY = ("torch", "timm", "torchvision", "numpy", "PIL", "matplotlib", "pydantic", "onnxruntime")
HEAVY += ("sklearn", "lightly", "lightning_fabric", "scipy")


def commands() -> list[str]:
    """Read the commands from the program's own help."""
    command = [sys.executable, "-m", "transferkit", "--help"]
    text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return re.findall(r"^ {2}([a-z][a-z-]+)(?= {2,})", text.partition("Commands")[2], re.MULTILINE)


def measured(arguments: list[str], repeats: int) -> float:
    """Return the median seconds of a command."""
    command = [sys.executable, "-m", "transferkit", *arguments]
    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def loaded(arguments: list[str]) -> list[str]:
    """Return the heavy modules that a command imports."""
    command = [sys.executable, "-X", "importtime", "-m", "transferkit", *arguments]
    text = subprocess.run(command, capture_output=True, check=True, text=True).stderr
    names = {line.rpartition("|")[2].strip() for line in text.splitlines() if "|" in line}
    return [name for name in HEAVY if name in names]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run")
    parser.add_argument("--picture")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = [["--help"], *([name, "--help"] for name in commands())]
    if options.run and options.picture:
        rows.append(["predict", options.run, options.picture])
    print("| command | median seconds | heavy modules |\n| --- | --- | --- |")
    for row in rows:
        shown = "predict RUN PICTURE" if row[-1] == options.picture else " ".join(row)
        seconds = measured(row, options.repeats)
        print(f"| `{shown}` | {seconds:.2f} | {', '.join(loaded(row)) or 'none'} |", flush=True)


if __name__ == "__main__":
    main()
