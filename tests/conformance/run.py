"""Run diffusers' own common tests against voxdiff's classes.

    python tests/conformance/run.py --checkout DIFFUSERS --adapter tests/conformance/adapter.py --relax-accelerator

The tests come from the checkout; the diffusers under them is the installed one. DIFFUSERS_TEST_DEVICE (default: cpu)
is upstream's own switch. The exit status is 0 when nothing failed; the last line is the count.
"""

import argparse
import os
import sys
from pathlib import Path

import pytest
from outcomes import Outcomes

HERE = Path(__file__).resolve().parent
DEFAULT_GROUPS = (
    "pipeline,pipeline-memory,model,model-autoencoder,model-training,model-memory,model-attention,"
    "model-attention-backend"
)


def main() -> int:
    arguments = parse_arguments()
    os.environ.update(
        CONFORMANCE_CHECKOUT=arguments.checkout,
        CONFORMANCE_ADAPTER=os.path.abspath(arguments.adapter),
        CONFORMANCE_GROUPS=arguments.groups.replace("default", DEFAULT_GROUPS),
    )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("DIFFUSERS_TEST_DEVICE", "cpu")
    outcomes = Outcomes(relax=arguments.relax_accelerator)
    options = ["-q", "--no-header", "--disable-warnings", "-p", "no:cacheprovider", "-c", os.devnull]
    options += [f"--rootdir={HERE}", f"--tb={'no' if arguments.quiet else 'short'}", *arguments.pytest_arguments]
    pytest.main([str(HERE / "upstream_tests.py"), *options], plugins=[outcomes])
    report(outcomes, arguments.checkout)
    return 1 if outcomes.failures() or outcomes.collection_errors or not outcomes.rows else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", required=True, help="root of a diffusers checkout")
    parser.add_argument("--adapter", required=True, help="file whose CASES describe the classes under test")
    parser.add_argument(
        "--groups", default="default", help=f"default: {DEFAULT_GROUPS}; more: pipeline-legacy,model-unet,model-compile"
    )
    parser.add_argument("--relax-accelerator", action="store_true", help="run accelerator tests on the CPU as well")
    parser.add_argument("--quiet", action="store_true", help="no tracebacks")
    parser.add_argument("pytest_arguments", nargs="*", help="after --: passed to pytest, such as -k save_load")
    return parser.parse_args()


def report(outcomes: Outcomes, checkout: str) -> None:
    import diffusers

    print(f"\nInstalled diffusers {diffusers.__version__}, tests from {checkout}")
    for error in outcomes.collection_errors:
        print(f"NOT COLLECTED  {error}")
    for test, message in outcomes.failures():
        print(f"FAILED  {test}\n        {message}")
    for category, reasons in sorted(outcomes.skips().items()):
        print(f"-- skipped, {category}: {sum(map(len, reasons.values()))}")
        for reason, tests in sorted(reasons.items()):
            names = ", ".join(sorted({test.split("::")[-1] for test in tests}))
            print(f"   {len(tests)} x {reason[:150]}  <- {names}")
    counts = outcomes.counts()
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")


if __name__ == "__main__":
    sys.exit(main())
