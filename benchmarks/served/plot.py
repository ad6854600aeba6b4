"""Pictures of the serving question: states per second of each peer, one row each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .models import ROWS


def draw(report: dict[str, Any], path: Path) -> None:
    """``<path>-<model>-<row>.png`` for each model and row of the report."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    cases = [case for case in report["cases"] if "error" not in case]
    for model in dict.fromkeys(case["model"] for case in cases):
        for row in dict.fromkeys(case["row"] for case in cases):
            here = [c for c in cases if (c["model"], c["row"]) == (model, row)]
            names = [
                "{peer}, {states}, {clients}x{in_flight}".format(**case)
                for case in here
            ]
            figure, axes = plt.subplots(figsize=(9, 1 + 0.28 * len(here)))
            colours = [
                "tab:blue" if case["peer"] == "skate_serving" else "tab:gray"
                for case in here
            ]
            axes.barh(names, [case["states_per_s"] for case in here], color=colours)
            if model == "sleep":
                axes.axvline(ROWS[row].bound, color="black", linestyle=":")
            axes.invert_yaxis()
            axes.set_xlabel("states/s (clients x batches in flight; dotted: the bound)")
            axes.set_title(f"{row} row, {model} model")
            figure.tight_layout()
            figure.savefig(path.with_name(f"{path.name}-{model}-{row}.png"), dpi=110)
            plt.close(figure)
