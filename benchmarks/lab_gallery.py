"""Make docs/lab.md: the figure and the sentences of every experiment of `transferkit lab`.

    python benchmarks/lab_gallery.py [TOPIC ...]

All experiments, or those named: then the rest of the page stays as it is. Figures have 64 colours,
which makes them small.
"""

import argparse
import io
import re
from pathlib import Path

from PIL import Image

from transferkit.files.atomic_write import png_of, write_atomically
from transferkit.lab.finding import Finding, draw
from transferkit.lab.topics import TOPICS

PAGE = Path(__file__).parents[1] / "docs" / "lab.md"
FIGURES = PAGE.with_name("lab")
HEAD = """# The laboratory

`transferkit lab TOPIC` runs a small experiment and draws its figure; `transferkit lab all` runs
every one of them, in less than 20 minutes on two cores. Networks are built and trained with the
parts that `finetune` and `pretrain` use. The pictures are the handwritten digits that come with
scikit-learn, so nothing is downloaded, and the seeds are fixed. This page is made by
`python benchmarks/lab_gallery.py`; every number in a sentence is read from the measurement.
"""


def section(topic: str, found: Finding) -> str:
    """Return a part of the page, in Markdown."""
    lines = [f"## {topic}", "", f"**{found.title}.** `transferkit lab {topic}`", ""]
    lines += [f"![{found.title}](lab/{topic}.png)", ""]
    lines += [f"- {sentence}" for sentence in found.sentences]
    if found.table:
        headings, *rows = found.table
        table = [headings, ("---",) * len(headings), *rows]
        lines += ["", *(f"| {' | '.join(row)} |" for row in table)]
    return "\n".join(lines) + "\n"


def save_small(path: Path, found: Finding) -> None:
    """Draw a figure as a PNG of 64 colours."""
    drawn = io.BytesIO()
    png_of(draw(found))(drawn)
    small = Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    write_atomically(path, lambda file: small.save(file, format="PNG", optimize=True))


def main() -> None:
    """Run the experiments, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=", ".join(TOPICS))
    wanted = parser.parse_args().topics or list(TOPICS)
    FIGURES.mkdir(exist_ok=True)
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    parts = {p.split("\n", 1)[0]: f"## {p}" for p in re.split(r"^## ", old, flags=re.M)[1:]}
    for topic in wanted:
        found = TOPICS[topic].run()
        save_small(FIGURES / f"{topic}.png", found)
        parts[topic] = section(topic, found)
        print(parts[topic])
    every = [parts[topic].rstrip() + "\n" for topic in TOPICS if topic in parts]
    page = "\n".join([HEAD, *every])
    write_atomically(PAGE, lambda file: file.write(page.encode()))


if __name__ == "__main__":
    main()
