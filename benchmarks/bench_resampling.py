"""What the data set tools of informed slices do: harmonisation, counterfactuals, privacy of an enhanced set, and cost.

    python benchmarks/bench_resampling.py --gem FOLDER --runs FOLDER --cache FOLDER [--cohort flair|ct]
        [--parts harmonise counterfactual privacy cost] [--volumes 40] [--references 200] [--heldout 60]

harmonise       test subjects' masks with one informed slice. Spread: the standard deviation across subjects of the median
                intensity in a region of the mask, in the real volumes, the same through the autoencoder, with slices of
                other subjects (IC) and with the one slice; the ratio to the real one has a jackknife interval
counterfactual  the subject with its own and with an edited mask (tumour removed, or moved by --shift mm towards the
                centre), same noise, same slice: mean absolute change inside the edit and in the rest of the brain; "noise" is
                the change there where only the noise is another one. A picture of the first subject; brains only
privacy         the training set enhanced (IC, with and without mask augmentation): copy distances of each volume to its
                mask's owner, to its slice's donor and to all references, and the test for copies with a threshold from
                test subjects. Positive control: the owners' volumes through the autoencoder
cost            network calls and seconds a volume of the published procedure (200 steps of DDIM with eta 1, official
                propagation and known slices, windows one after the other) and of ours (--default-steps of DPM-Solver++,
                both directions in one batch), taking turns

Sets are kept in --runs and never repeated. Writes NAME.json, NAME.md and NAME.png below --out; a part that is
measured again replaces its section only.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from informed_slice_sets import GEM, cohort_cases, load_models
from record import RESULTS, environment, write_result
from resampling_parts import PARTS, Bench
from resampling_tables import document


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    described = environment()
    pipe = load_models(args.gem, None, args.dtype)[GEM]
    test = cohort_cases(args.cohort, "test", max(args.volumes, args.heldout), args.cache)
    train = cohort_cases(args.cohort, "train", args.references, args.cache) if "privacy" in args.parts else []
    bench = Bench(pipe=pipe, args=args, test=test, train=train)
    path = args.out / f"{args.name}.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"parts": {}}
    for part in args.parts:
        print(time.strftime("%H:%M:%S"), part, flush=True)
        protocol = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        found = PARTS[part](bench)
        result["parts"][part] = {"protocol": protocol, "environment": described, **found}
        result["what"] = (__doc__ or "").splitlines()[0]
        write_result(args.name, result | {"load_average_at_end": environment()["load_average"]}, args.out)
        path.with_suffix(".md").write_text(document(result["parts"]), encoding="utf-8")
    if bench.picture is not None:
        shutil.copyfile(bench.picture, path.with_suffix(".png"))
    print(document(result["parts"]), path, sep="\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gem", type=Path, required=True, help="the pipeline")
    parser.add_argument("--runs", type=Path, required=True, help="keeps the volumes")
    parser.add_argument("--cache", type=Path, default=Path("outputs/cohort"), help="where subjects are kept")
    parser.add_argument("--cohort", default="flair", choices=("flair", "ct"))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--volumes", type=int, default=40, help="harmonised, and enhanced")
    parser.add_argument("--edits", type=int, default=8, help="subjects edited")
    parser.add_argument("--shift", type=float, default=20.0, help="way of a moved tumour in mm")
    parser.add_argument("--references", type=int, default=200, help="training subjects that volumes may be copies of")
    parser.add_argument("--heldout", type=int, default=60, help="test subjects that set the threshold of a copy")
    parser.add_argument("--default-steps", type=int, default=20)
    parser.add_argument("--published-steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2, help="turns of the cost")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"), help="of the networks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="resampling")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.cohort == "ct" and "counterfactual" in args.parts:
        parser.error("The counterfactuals edit a tumour, which the CT cohort does not have; leave the part out.")
    if args.references < args.volumes:
        parser.error(f"{args.volumes} volumes need as many references, whose masks they have; raise --references.")
    return args


if __name__ == "__main__":
    main()
