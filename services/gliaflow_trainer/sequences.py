"""Which sequences the scans of a cohort have: what no scan has is refused, and what some lack is counted and said."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from gliaflow_plugins.cohorts.tables import few
from gliaflow_plugins.contracts import Case, PluginError
from gliaflow_plugins.sequence_names import SHOWN
from gliaflow_runtime.bundle.manifest import InputSpec
from rich.progress import Progress

REMEDY = "put it beside the FLAIR, under a name that says so (docs/scans.md), or name it in a table (docs/cohorts.md)"


def lacking(case: Case, spec: InputSpec) -> list[str]:
    """The sequences of a network that a case does not have."""
    return [name for name in spec.channels[1:] if name not in case.sequences]


def why_not_used(case: Case, spec: InputSpec) -> str:
    """Why networks of these sequences cannot use a case; empty: they can."""
    needed = [name for name in lacking(case, spec) if name not in spec.optional]
    return f"{case.scan}: it has no {' and no '.join(needed)}, which the U-Net needs: {REMEDY}" if needed else ""


def refuse_absent(cases: Collection[Case], spec: InputSpec) -> None:
    """Raise PluginError if no case has a sequence, so that a network could not learn it."""
    for name in spec.channels[1:]:
        if not any(name in case.sequences for case in cases):
            others = ",".join(each for each in spec.channels if each != name)
            unused = [f"{case.id}: {case.unused[name]}" for case in cases if name in case.unused]
            why = f" ({unused[0]})" if unused else ""
            raise PluginError(
                f"--channels: no scan with a mask has {name} ({SHOWN[name]}){why}: {REMEDY}, or train without it "
                f"(--channels {others})"
            )


def refuse_unlearned(learn: Collection[Case], spec: InputSpec, of: str = "") -> None:
    """Raise PluginError if no case that a U-Net learns from has a sequence, since only others have it.

    ``of``: the name of the fit, for the message.
    """
    for name in spec.channels[1:]:
        if not any(name in case.sequences for case in learn):
            raise PluginError(
                f"{of}no patient to learn from has {name} ({SHOWN[name]}): all who have it are among the others. Give "
                "it to more patients, give another --seed, or train without it (--channels)"
            )


def report_missing(cases: Sequence[Case], spec: InputSpec, bar: Progress) -> None:
    """Print a line for each sequence that some cases lack, and whether they are used without it."""
    for name in spec.channels[1:]:
        without = [case.id for case in cases if name not in case.sequences]
        if without:
            then = (
                "they are used without it"
                if name in spec.optional
                else f"left out, since the U-Net needs it (--drop over 0 trains one that can do without it): {REMEDY}"
            )
            bar.console.print(
                f"sequences {len(without)} of {len(cases)} scans have no {name}: {few(without)}; {then}",
                style="yellow",
                soft_wrap=True,
            )


def patients_with(cases: Iterable[Case], spec: InputSpec) -> dict[str, int]:
    """How many patients have each sequence beside the FLAIR, by name; empty for FLAIR alone."""
    used = list(cases)
    return {name: len({case.patient for case in used if name in case.sequences}) for name in spec.channels[1:]}
