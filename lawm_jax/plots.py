"""Plots of a run, drawn from plain records: what metrics.jsonl and results.json hold.

Every function writes one PNG; a plot that is there is replaced whole or not at all. The colours are
those of Okabe and Ito, which colour-blind readers tell apart.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
METHOD_COLOURS = {
    "lawm": BLUE, "c_lap": ORANGE, "c_lap_oracle": GREY, "idm_td3_bc": GREEN, "td3_bc": "#CC79A7",
    "td3_bc_oracle": "#BBBBBB", "bc": "#E69F00",
    "lapo": BLUE, "lapo_without_vq": ORANGE, "behaviour_cloning": GREY,
}
QUARTILES = (
    ("p75", "75th percentile", ":"),
    ("median", "median", "--"),
    ("p25", "25th percentile", ":"),
)
Interval = tuple[float, float, float]  # mean, low, high


def learning_curve(
    path: epath.PathLike,
    records: Sequence[Mapping[str, Any]],
    return_statistics: Mapping[str, float],
) -> None:
    """Draws the return in the real environment, with its 95% interval, against the agent's step.

    records: those with "return_mean" are drawn, +- "return_ci95" where they have it.
    return_statistics: of the data set; its p25, median and p75 become horizontal lines.
    """
    evaluations = [record for record in records if "return_mean" in record]
    step = [record["step"] for record in evaluations]
    mean = np.array([record["return_mean"] for record in evaluations])
    half = np.array([record.get("return_ci95", 0.0) for record in evaluations])
    with _figure(path, "agent step", "episode return", width=7.5) as axes:
        axes.fill_between(step, mean - half, mean + half, color=BLUE, alpha=0.2, linewidth=0)
        axes.errorbar(
            step, mean, half, color=BLUE, marker="o", markersize=3, elinewidth=1, label="policy"
        )
        for key, label, style in QUARTILES:
            if key in return_statistics:
                axes.axhline(
                    return_statistics[key], color=GREY, linestyle=style, label=f"data set, {label}"
                )
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def losses(path: epath.PathLike, records: Sequence[Mapping[str, Any]], phase: str) -> None:
    """Draws every metric of a training phase against its step, a panel each."""
    records = [record for record in records if record["phase"] == phase]
    names = list(dict.fromkeys(name for record in records for name in record))
    names = [name for name in names if name not in ("step", "phase")]
    columns = 4
    rows = max(1, -(-len(names) // columns))
    # Dozens of panels take matplotlib's layout seconds, so these have fixed places, in inches.
    width, height = 11.0, 1.8 * rows + 0.4
    figure = _new_figure(width, height, layout="none")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, gridspec_kw={
        "left": 0.6 / width, "right": 1 - 0.1 / width, "wspace": 0.3,
        "bottom": 0.6 / height, "top": 1 - 0.3 / height, "hspace": 0.3,
    }).flat
    for axes, name in zip(panels, names, strict=False):
        points = [(record["step"], record[name]) for record in records if name in record]
        marker = "." if len(points) < 30 else None
        axes.plot(*zip(*points, strict=True), color=BLUE, linewidth=1, marker=marker)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.locator_params(nbins=4)
        _tidy(axes)
    for axes in panels[len(names) :]:
        axes.remove()
    for axes in panels[max(0, len(names) - columns) : len(names)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    figure.supxlabel(f"{phase.replace('_', '-')} step", fontsize=10)
    _write(figure, path)


def open_loop(path: epath.PathLike, errors: Mapping[int, float]) -> None:
    """Draws the open-loop prediction error against the horizon; errors: steps ahead -> error."""
    horizons = sorted(errors)
    with _figure(path, "steps predicted ahead", "observation error") as axes:
        axes.plot(horizons, [errors[h] for h in horizons], color=BLUE, marker="o")
        axes.set_xticks(horizons)
        axes.set_ylim(bottom=0)


def return_histogram(
    path: epath.PathLike, returns: Sequence[float], policy_return: float | None = None
) -> None:
    """Draws the histogram of a data set's episode returns, the policy's return marked in it."""
    with _figure(path, "episode return", "trajectories") as axes:
        axes.hist(returns, bins=40, color=BLUE, alpha=0.8, label="data set")
        if policy_return is not None:
            axes.axvline(
                policy_return, color=ORANGE, linewidth=2, label=f"policy: {policy_return:.0f}"
            )
        axes.legend(frameon=False)


def decoding_curves(
    path: epath.PathLike,
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    lines: Mapping[str, float],
) -> None:
    """Draws the return of policies against the number of labels that they came from.

    curves: name -> records with "labels", "return_mean" and "return_ci95".
    lines: name -> return of what they are compared with, drawn as horizontal lines.
    """
    with _return_curves(path, "labels", "labelled transitions", curves, lines) as axes:
        axes.set_xscale("log", base=2)


def online_curves(
    path: epath.PathLike,
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    lines: Mapping[str, float],
) -> None:
    """Draws the return of policies against the frames that they were trained on.

    curves: name -> records with "frames", "return_mean" and "return_ci95".
    lines: as for `decoding_curves`.
    """
    with _return_curves(path, "frames", "frames", curves, lines) as axes:
        axes.set_xlim(left=0)


@contextlib.contextmanager
def _return_curves(
    path: epath.PathLike,
    key: str,
    x_label: str,
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    lines: Mapping[str, float],
) -> Iterator["Axes"]:
    """Returns with intervals against record[key], and lines for references."""
    with _figure(path, x_label, "episode return", width=7.5) as axes:
        for (name, records), colour in zip(curves.items(), (BLUE, ORANGE, GREEN), strict=False):
            column = lambda name, records=records: [record[name] for record in records]
            axes.errorbar(
                column(key), column("return_mean"), column("return_ci95"), color=colour,
                marker="o", markersize=4, elinewidth=1, label=name,
            )
        for (label, value), style in zip(lines.items(), ("-", "--", ":"), strict=False):
            axes.axhline(value, color=GREY, linestyle=style, label=label)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        yield axes


def frame_table(
    path: epath.PathLike, columns: Sequence[str], rows: Mapping[str, np.ndarray]
) -> None:
    """Draws frames in rows under the titles of their columns.

    rows: name -> [columns, H, W, 3] uint8.
    """
    figure = _new_figure(1.1 * len(columns) + 0.9, 1.1 * len(rows) + 0.5)
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (name, frames) in zip(panels, rows.items(), strict=True):
        for axes, frame in zip(line, frames, strict=True):
            axes.imshow(frame)
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(name, fontsize=9)
    for axes, title in zip(panels[0], columns, strict=True):
        axes.set_title(title, fontsize=min(9.0, 60 / max(len(title), 1)))
    _write(figure, path)


def coloured_points(
    path: epath.PathLike,
    panels: Mapping[str, np.ndarray],
    labels: np.ndarray,
    names: Sequence[str],
    title: str,
) -> None:
    """Draws points in a panel each, coloured by label.

    panels: title -> [M, 2].
    labels: [M] integers, indices into `names`, which the legend shows under its title.
    """
    from matplotlib import colormaps

    figure = _new_figure(4.2 * len(panels) + 1.0, 4.0)
    axes_row = figure.subplots(1, len(panels), squeeze=False)[0]
    values = np.unique(labels)
    colour_of = colormaps["tab20"]
    for axes, (panel, points) in zip(axes_row, panels.items(), strict=True):
        for i, value in enumerate(values):
            chosen = points[labels == value]
            axes.scatter(
                chosen[:, 0], chosen[:, 1], s=4, color=colour_of(i % 20), label=names[value],
                linewidths=0,
            )
        axes.set_title(panel, fontsize=10)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xticks([])
        axes.set_yticks([])
    axes_row[-1].legend(
        frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=3, title=title
    )
    _write(figure, path)


def bars(
    path: epath.PathLike,
    panels: Mapping[str, Mapping[str, Mapping[str, Interval]]],
    y_label: str,
    names: Mapping[str, str] | None = None,
    x_label: str = "",
) -> None:
    """Draws means with their intervals as bars, a panel a data set, groups of methods side by side.

    panels: title -> group ("1%") -> method -> (mean, low, high).
    names: what the legend calls a method.
    x_label: what the groups are.
    """
    figure = _new_figure(max(6.0, 3.2 * len(panels)), 2.8)
    axes_row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, groups) in zip(axes_row, panels.items(), strict=True):
        ticks, position = [], 0.0
        for group, methods in groups.items():
            ticks.append((position + (len(methods) - 1) / 2, group))
            for method, interval in methods.items():
                name = (names or {}).get(method, method)
                axes.bar(position, interval[0], 0.9, color=_colour(method), label=name)
                axes.errorbar(
                    position, interval[0], _halves([interval]), color="black", capsize=3,
                    linewidth=1,
                )
                position += 1.0
            position += 0.6
        axes.set_xticks(*zip(*ticks, strict=True))
        axes.set_xlabel(x_label)
        axes.set_title(title, fontsize=10)
        _tidy(axes)
    _legend_below(figure, axes_row)
    figure.supylabel(y_label, fontsize=10)
    _write(figure, path)


def interval_curves(
    path: epath.PathLike,
    panels: Mapping[str, Mapping[str, Mapping[float, Interval]]],
    x_label: str,
    y_label: str,
    names: Mapping[str, str] | None = None,
    log: bool = True,
    band: bool = False,
) -> None:
    """Draws means with their intervals against a number, a panel a title, a curve a method.

    panels: title -> method -> x -> (mean, low, high).
    log: whether the numbers are on a logarithmic axis, where each of them becomes a tick.
    band: intervals as a band, not as bars.
    """
    figure = _new_figure(max(5.0, 3.8 * len(panels)), 3.4)
    axes_row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, curves) in zip(axes_row, panels.items(), strict=True):
        for method, points in curves.items():
            x = sorted(points)
            values = np.array([points[key] for key in x])
            style = {"color": _colour(method), "label": (names or {}).get(method, method)}
            if band:
                axes.plot(x, values[:, 0], linewidth=1.5, **style)
                axes.fill_between(
                    x, values[:, 1], values[:, 2], color=style["color"], alpha=0.15, linewidth=0
                )
            else:
                axes.errorbar(
                    x, values[:, 0], _halves(values), marker="o", markersize=4, capsize=3, **style
                )
        if log:
            ticks = sorted({x for points in curves.values() for x in points})
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks], minor=False)
            axes.set_xticks([], minor=True)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(x_label)
        _tidy(axes)
    _legend_below(figure, axes_row)
    figure.supylabel(y_label, fontsize=10)
    _write(figure, path)


def intervals(
    path: epath.PathLike,
    panels: Mapping[str, Mapping[str, Interval]],
    x_label: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """Draws values with their intervals as points beside each other, a panel a title.

    panels: title -> method -> (mean, low, high); methods from top to bottom.
    """
    figure = _new_figure(max(6.0, 3.8 * len(panels)), 2.6)
    axes_row = figure.subplots(1, len(panels), squeeze=False, sharex=True)[0]
    for axes, (title, rows) in zip(axes_row, panels.items(), strict=True):
        for place, (method, interval) in enumerate(rows.items()):
            axes.errorbar(
                interval[0], -place, xerr=_halves([interval]), marker="o", capsize=3,
                color=_colour(method),
            )
        axes.set_yticks(
            range(0, -len(rows), -1), [(names or {}).get(method, method) for method in rows]
        )
        axes.set_title(title, fontsize=10)
        _tidy(axes)
    figure.supxlabel(x_label, fontsize=10)
    _write(figure, path)


def _colour(method: str) -> str:
    return METHOD_COLOURS.get(method, GREEN)


def _halves(values: Sequence[Interval] | np.ndarray) -> np.ndarray:
    """What matplotlib's error bars take: [2, N] distances from the means, none below zero."""
    mean, low, high = np.asarray(values, float).T
    return np.clip([mean - low, high - mean], 0.0, None)


def _legend_below(figure: "Figure", axes_row: Sequence["Axes"]) -> None:
    handles = {
        label: handle
        for axes in axes_row
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), frameon=False, loc="outside lower center",
        ncols=max(1, len(handles)), fontsize=9,
    )


def _new_figure(width: float, height: float, layout: str = "constrained") -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout=layout)
    FigureCanvasAgg(figure)  # not pyplot: no global state, no display
    return figure


def _tidy(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


@contextlib.contextmanager
def _figure(
    path: epath.PathLike, x_label: str, y_label: str, width: float = 6.0
) -> Iterator["Axes"]:
    """A figure of one panel, written when the block ends."""
    figure = _new_figure(width, 3.6)
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _tidy(axes)
    yield axes
    _write(figure, path)


def _write(figure: "Figure", path: epath.PathLike) -> None:
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        figure.savefig(file, format="png")
    part.replace(path)
