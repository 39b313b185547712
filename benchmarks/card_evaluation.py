"""Put an evaluation into a model card: its report as a section of README.md, its files below `evaluation/`.

    voxdiff evaluate --real DIR --synthetic DIR ... --out REPORT
    python benchmarks/card_evaluation.py REPORT model_cards/wdm-brain-64 --intro "128 samples, seeds 1000 to 1127, ..."

A section `## Evaluation` that is already there is replaced. With `--of mr` it is `## Evaluation: mr`, its files below
`evaluation/mr/`: a section for each class of a model.
"""

import argparse
import re
import shutil
from pathlib import Path

from voxdiff.volumes import atomic_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="folder that `voxdiff evaluate` wrote")
    parser.add_argument("card", type=Path, help="folder of the model")
    parser.add_argument("--intro", default="", help="what was sampled and how, one paragraph")
    parser.add_argument("--of", default="", help="class of the model that was evaluated")
    args = parser.parse_args()
    heading, place = ("## Evaluation\n", "evaluation")
    if args.of:
        heading, place = f"## Evaluation: {args.of}\n", f"evaluation/{args.of}"
    folder = args.card / place
    folder.mkdir(exist_ok=True, parents=True)
    for file in sorted(path for path in args.report.iterdir() if path.is_file()):
        shutil.copyfile(file, folder / file.name)
    card = args.card / "README.md"
    new = section(heading, (folder / "report.md").read_text(), args.intro, place)
    text = with_section(card.read_text(encoding="utf-8"), heading, new)
    with atomic_path(card) as temporary:
        temporary.write_text(text, encoding="utf-8")


def section(heading: str, report: str, intro: str, place: str) -> str:
    """The report one heading deeper, its pictures where they were copied to."""
    body = report.split("\n", 1)[1].strip()
    body = re.sub(r"^(#+) ", r"#\1 ", body, flags=re.MULTILINE)
    body = re.sub(r"(!\[[^\]]*\])\(([^)/]+)\)", rf"\1({place}/\2)", body)
    return f"{heading}\n{intro}\n\n{body}\n" if intro else f"{heading}\n{body}\n"


def with_section(card: str, heading: str, new: str) -> str:
    """The card with the section in place of its old one, or at its end."""
    if heading not in card:
        return f"{card.rstrip()}\n\n{new}"
    before, _, rest = card.partition(heading)
    after = re.search(r"^## ", rest, flags=re.MULTILINE)
    return before + new + (f"\n{rest[after.start() :]}" if after else "")


if __name__ == "__main__":
    main()
