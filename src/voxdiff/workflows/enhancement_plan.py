"""Which mask meets which informed slice: every choice is a pure function of the seed and of names.

No generator is advanced from case to case, so that a choice does not depend on the order of the cases, on how many were
made before, or on what was interrupted.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from voxdiff.workflows.masked_cases import MaskedCase, check_cases

Informed = Literal["cross", "own", "generated", "none"]
INFORMED: tuple[Informed, ...] = ("cross", "own", "generated", "none")


@dataclass(frozen=True)
class PlannedVolume:
    """One volume to be made.

    Attributes:
        name: Of its files.
        case: The case whose mask it follows.
        variant: 0 and up.
        seed: Of its noise.
        mask_seed: Of the change of its mask; None leaves the mask as it is.
        donor: The case whose image gives the informed slice; None where no case does.
    """

    name: str
    case: MaskedCase
    variant: int
    seed: int
    mask_seed: int | None = None
    donor: MaskedCase | None = None

    def describe(self) -> dict[str, Any]:
        """Plain values for records."""
        return {
            "name": self.name,
            "case": self.case.name,
            "subject": self.case.subject,
            "variant": self.variant,
            "seed": self.seed,
            "mask_seed": self.mask_seed,
            "slice_from_case": self.donor.name if self.donor else None,
            "slice_from_subject": self.donor.subject if self.donor else None,
        }


def plan_enhancement(
    cases: Sequence[MaskedCase],
    *,
    variants: int = 1,
    informed: Informed = "cross",
    include_self: bool = False,
    augment_masks: bool = False,
    seed: int = 0,
) -> list[PlannedVolume]:
    """Every mask as often as there are variants, each with an informed slice, sorted by case and variant.

    Args:
        cases: The masks, and the images that slices are taken from.
        variants: Volumes a mask.
        informed: ``"cross"``: a slice of another subject, another one for each variant as long as there are enough.
            ``"own"``: of the mask's own image. ``"generated"``, ``"none"``: of no case.
        include_self: Whether a case's own subject is among the others.
        augment_masks: Whether masks are changed.
        seed: Of all choices.

    Raises:
        ValueError: If a case has no slice to be made from, or an option is impossible.
    """
    if informed not in INFORMED:
        raise ValueError(f"informed is {informed!r}; allowed are {', '.join(INFORMED)}.")
    if include_self and informed != "cross":
        raise ValueError(f"include_self belongs to informed 'cross', and informed is {informed!r}; leave it out.")
    if variants < 1:
        raise ValueError(f"variants is {variants}; give a whole number of at least 1.")
    ordered = check_cases(cases)
    pool: dict[str, list[MaskedCase]] = {}
    for case in ordered:
        if case.image is not None:
            pool.setdefault(case.subject, []).append(case)
    return [
        PlannedVolume(
            name=f"{case.name}-v{variant}",
            case=case,
            variant=variant,
            seed=draw(seed, "noise", case.name, variant),
            mask_seed=draw(seed, "mask", case.name, variant) if augment_masks else None,
            donor=_donor(case, variant, pool, informed, include_self, seed),
        )
        for case in ordered
        for variant in range(variants)
    ]


def draw(seed: int, *key: Any) -> int:
    """A whole number below 2⁵³, which JSON keeps exactly, from SHA-256."""
    digest = hashlib.sha256(json.dumps([seed, *key]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


def _donor(
    case: MaskedCase,
    variant: int,
    pool: dict[str, list[MaskedCase]],
    informed: Informed,
    include_self: bool,
    seed: int,
) -> MaskedCase | None:
    if informed in ("generated", "none"):
        return None
    if informed == "own":
        if case.image is None:
            raise ValueError(f"{case.name} has no image to take its own slice from; give one, or another `informed`.")
        return case
    subjects = [subject for subject in pool if include_self or subject != case.subject]
    if not subjects:
        raise ValueError(
            f"There is no subject besides {case.subject} to take an informed slice from; add subjects, or include the "
            "mask's own."
        )
    ranked = sorted(subjects, key=lambda subject: draw(seed, "slice", case.name, subject))
    scans = pool[ranked[variant % len(ranked)]]
    return scans[draw(seed, "scan", case.name, variant) % len(scans)]
