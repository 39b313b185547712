"""Put an evaluation into a model card: its report as a section of README.md, its files below `evaluation/`.

    voxdiff evaluate --real DIR --synthetic DIR ... --out REPORT
    python benchmarks/card_evaluation.py REPORT model_cards/wdm-brain-64 --intro "128 samples, seeds 1000 to 1127, ..."

A section `## Evaluation` that is already there is replaced.
"""

import argparse
import re
import shutil
from pathlib import Path

from voxdiff.volumes import atomic_path

HEADING = "## Evaluation\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="folder that `voxdiff evaluate` wrote")
    parser.add_argument("card", type=Path, help="folder of the model")
    parser.add_argument("--intro", default="", help="what was sampled and how, one paragraph")
    args = parser.parse_args()
    folder = args.card / "evaluation"
    folder.mkdir(exist_ok=True)
    for file in sorted(path for path in args.report.iterdir() if path.is_file()):
        shutil.copyfile(file, folder / file.name)
    card = args.card / "README.md"
    text = with_section(card.read_text(encoding="utf-8"), section((folder / "report.md").read_text(), args.intro))
    with atomic_path(card) as temporary:
        temporary.write_text(text, encoding="utf-8")


def section(report: str, intro: str) -> str:
    """The report one heading deeper, its pictures below `evaluation/`."""
    body = report.split("\n", 1)[1].strip()
    body = re.sub(r"^(#+) ", r"#\1 ", body, flags=re.MULTILINE)
    body = re.sub(r"(!\[[^\]]*\])\(([^)/]+)\)", r"\1(evaluation/\2)", body)
    return f"{HEADING}\n{intro}\n\n{body}\n" if intro else f"{HEADING}\n{body}\n"


def with_section(card: str, new: str) -> str:
    """The card with the section in place of its old one, or at its end."""
    if HEADING not in card:
        return f"{card.rstrip()}\n\n{new}"
    before, _, rest = card.partition(HEADING)
    after = re.search(r"^## ", rest, flags=re.MULTILINE)
    return before + new + (f"\n{rest[after.start() :]}" if after else "")


if __name__ == "__main__":
    main()
