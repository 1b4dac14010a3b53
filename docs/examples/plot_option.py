"""Plots accuracy against one option of a method, from the records of a sweep.

    python plot_option.py experts runs/digits/ipc1/mtt experts.png

Runs that differ in nothing but that option and their seed make a line: means over sets, and standard deviations.
"""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

from ddbench.leaderboard.observations import collect

KEYS = ["dataset", "ipc", "train_backbone", "protocol", "judge", "others"]


def plot(option: str, folder: Path, output: Path) -> None:
    """Write a picture. Exits with a sentence where there is nothing to plot."""
    table = collect(sorted(path.parent for path in folder.rglob("record.json")))
    # Sets that were imported have no options.
    configs = [json.loads(text) for text in table.get("config", [])]
    table = table[[option in config for config in configs]].copy()
    configs = [config for config in configs if option in config]
    if not configs:
        sys.exit(f"no record in {folder} has an option {option!r}.")
    table["value"] = [config.pop(option) for config in configs]
    table["others"] = [json.dumps(config, sort_keys=True) for config in configs]
    sets = table.groupby([*KEYS, "value", "run"], as_index=False)["accuracy"].mean()
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for key, line in sets.groupby(KEYS):
        points = line.groupby("value")["accuracy"].agg(["mean", "std"]) * 100
        if len(points) > 1:
            label = f"{key[0]}, ipc {key[1]}, {key[3]}, {key[4]}"
            axes.errorbar(points.index, points["mean"], points["std"].fillna(0), marker="o", capsize=3, label=label)
    if not axes.lines:
        sys.exit(f"no two runs in {folder} differ in {option} alone.")
    axes.set_xscale("log")
    axes.set_xticks(sorted(set(sets["value"])), [str(value) for value in sorted(set(sets["value"]))])
    axes.minorticks_off()
    axes.set_xlabel(option)
    axes.set_ylabel("test accuracy, %")
    axes.legend(fontsize="small")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python plot_option.py OPTION FOLDER OUTPUT")
    plot(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
