"""Evaluation of predicted label maps: match the cases, score each of them, summarize the scores, report them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from HiEndMAECore.data.label_table import find_label_table
from HiEndMAECore.errors import InputError
from HiEndMAECore.io.readers import read_label_map
from HiEndMAECore.reporting.reporter import Reporter

from .common_grid import align_to_common_grid
from .matching import MatchedCases, match_cases
from .metrics import SCORES, StructureScore, not_labelled, score_case
from .report import format_table
from .statistics import summarize

_MAX_LISTED_NAMES = 5
REPORT_FORMAT = 1


@dataclass
class CaseScores:
    """The scores of all cases.

    Attributes:
        scores: By the name of the case, then by label value.
        failures: Cases that could not be scored, each {"case", "code", "message", "advice"}.
    """

    scores: dict[str, dict[int, StructureScore]] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        result: The report as plain JSON values.
        case_count: Number of pairs, with those that could not be scored.
    """

    result: dict[str, Any]
    case_count: int

    @property
    def failed(self) -> list[str]:
        """The names of the cases that could not be scored."""
        return [case["case"] for case in self.result["failed"]]


def evaluate_label_maps(
    prediction: Path,
    reference: Path,
    *,
    labels: Path | None,
    tolerance_mm: float,
    ignore: int | None = None,
    seed: int,
    report: Reporter,
) -> Evaluation:
    """Score predictions against references.

    Args:
        prediction: A label map, or a folder of them.
        reference: A label map, or a folder of them.
        labels: dataset.json or model.json that names the structures. None looks for a dataset.json near the reference.
        tolerance_mm: Tolerance of the surface Dice.
        ignore: Value of the references' ignored voxels; None: that of the dataset.json, if it has one.
        seed: Seed of the bootstrap intervals.
        report: Receives warnings and progress.

    Raises:
        InputError: The cases cannot be matched, the names of structures cannot be read, or, when both paths are files,
            the case cannot be scored. In folders such a case is a failure of the report.
    """
    cases = match_cases(prediction, reference)
    table = find_label_table(labels, reference)
    ignore = table.ignore if ignore is None else ignore
    names = {value: name for value, name in table.names.items() if value != ignore}
    warn_unmatched_cases(cases, report)
    is_batch = prediction.is_dir() or reference.is_dir()
    case_scores = score_cases(
        cases.pairs, tolerance_mm=tolerance_mm, ignore=ignore, skip_failures=is_batch, report=report
    )
    result: dict[str, Any] = {
        "format": REPORT_FORMAT,
        "prediction": str(prediction),
        "reference": str(reference),
        "tolerance_mm": tolerance_mm,
        **({} if ignore is None else {"ignore": ignore}),
        "seed": seed,
        **summarize_scores(case_scores.scores, names, seed=seed),
        "failed": case_scores.failures,
        "without_prediction": cases.without_prediction,
        "without_reference": cases.without_reference,
    }
    return Evaluation(result, len(cases.pairs))


def warn_unmatched_cases(cases: MatchedCases, report: Reporter) -> None:
    """Warn about cases that have a prediction or a reference alone."""
    for names, code, message in (
        (cases.without_prediction, "no_prediction", "a reference but no prediction; not in the means"),
        (cases.without_reference, "no_reference", "a prediction but no reference; not scored"),
    ):
        if names:
            listed = ", ".join(names[:_MAX_LISTED_NAMES]) + (", …" if len(names) > _MAX_LISTED_NAMES else "")
            report.warning(code, f"{len(names)} with {message}: {listed}.", "The report lists all.")


def score_cases(
    pairs: Mapping[str, tuple[Path, Path]],
    *,
    tolerance_mm: float,
    ignore: int | None = None,
    skip_failures: bool,
    report: Reporter,
) -> CaseScores:
    """Score every case.

    Args:
        pairs: (prediction, reference) by the name of the case.
        tolerance_mm: Tolerance of the surface Dice.
        ignore: Value of the references' ignored voxels, if there is one.
        skip_failures: Continue with the next case when one cannot be scored.
        report: Receives progress, and a warning for each failure.

    Raises:
        InputError: A case cannot be scored and `skip_failures` is False.
    """
    result = CaseScores()
    names = list(pairs)
    for index in report.steps("cases", len(names)):
        name = names[index]
        try:
            result.scores[name] = score_files(*pairs[name], tolerance_mm=tolerance_mm, ignore=ignore)
        except InputError as error:
            if not skip_failures:
                raise
            result.failures.append({"case": name, "code": error.code, "message": error.message, "advice": error.advice})
            report.warning(error.code, f"{name} was skipped: {error.message}", error.advice)
    return result


def score_files(
    prediction: Path, reference: Path, *, tolerance_mm: float, ignore: int | None = None
) -> dict[int, StructureScore]:
    """Return the scores of one case by label value.

    Args:
        prediction: Predicted label map.
        reference: Reference label map, on the same voxels; either may have other axes or be cropped.
        tolerance_mm: Tolerance of the surface Dice.
        ignore: Value of the reference's ignored voxels, if there is one.

    Raises:
        InputError: A file cannot be read; or `geometry_mismatch`, when voxels would have to be interpolated.
    """
    predicted, expected = (read_label_map(path, allow_empty=True) for path in (prediction, reference))
    predicted, expected = align_to_common_grid(predicted, expected)
    return score_case(
        predicted.array[0], expected.array[0], affine=predicted.affine, tolerance_mm=tolerance_mm, ignore=ignore
    )


def summarize_scores(
    scores: Mapping[str, Mapping[int, StructureScore]], names: Mapping[int, str], *, seed: int
) -> dict[str, Any]:
    """Return the parts "overall", "structures" and "cases" of a report.

    Args:
        scores: By the name of the case, then by label value.
        names: Names of structures by label value; a value without a name becomes "label VALUE".
        seed: Seed of the bootstrap intervals.
    """
    values = sorted(set(names).union(*scores.values()))
    names = {value: names.get(value, f"label {value}") for value in values}
    summary = summarize(list(scores.values()), values, seed=seed)
    return {
        "overall": summary["overall"],
        "structures": [{"name": names[row["value"]], **row} for row in summary["structures"]],
        "cases": [
            {"case": case, "structure": names[value], **asdict(case_scores.get(value, not_labelled(value)))}
            for case, case_scores in scores.items()
            for value in values
        ],
    }


def report_means(result: Mapping[str, Any], report: Reporter) -> None:
    """Report the means of a report as `metric` events, and as a table for a person."""
    rows: Sequence[dict[str, Any]] = [*result["structures"], {"name": "mean of structures", **result["overall"]}]
    for row in rows:
        for score in SCORES:
            mean = row[score]
            report.metric(score, mean["mean"], structure=row["name"], interval=mean["interval"], n=mean["n"])
    for line in format_table(rows, result["tolerance_mm"]):
        report.info(line)
