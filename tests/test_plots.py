"""Plots are written whole from plain records."""

import numpy as np
import pytest

from lawm_jax import plots

STATISTICS = {"p25": 200.0, "median": 500.0, "p75": 700.0}


def records():
    losses = [
        {"step": s, "phase": "world_model", "loss": 3 * 0.99**s, "kl": 1.0, "reward": 0.1, "x": 0.0}
        for s in range(0, 300, 10)
    ]
    returns = [
        {"step": s, "phase": "evaluation", "return_mean": 500.0 + s / 4, "return_ci95": 40.0}
        for s in range(0, 1200, 200)
    ]
    return losses + returns


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_every_plot_is_written(tmp_path):
    returns = np.random.default_rng(0).normal(500, 150, 400)
    plots.learning_curve(tmp_path / "a" / "return.png", records(), STATISTICS)
    plots.losses(tmp_path / "losses.png", records(), "world_model")
    plots.open_loop(tmp_path / "open_loop.png", {1: 0.1, 5: 0.2, 10: 0.3, 25: 0.5})
    plots.return_histogram(tmp_path / "returns.png", returns, policy_return=812.0)
    curve = [{"frames": 10 * i, "return_mean": i, "return_ci95": 0.5} for i in range(3)]
    plots.online_curves(tmp_path / "online.png", {"a": curve, "b": curve}, {"random": 0.5})
    labels = np.arange(400) % 15
    points = {"z": np.stack([returns] * 2, 1)}
    plots.coloured_points(tmp_path / "points.png", points, labels, "abcdefghijklmno", "letter")
    written = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [path.name for path in written] == [
        "return.png",
        "losses.png",
        "online.png",
        "open_loop.png",
        "points.png",
        "returns.png",
    ]
    assert all(is_png(path) for path in written)


def test_plots_of_nothing_are_empty_not_errors(tmp_path):
    plots.learning_curve(tmp_path / "return.png", [], {})
    plots.losses(tmp_path / "losses.png", [], "world_model")
    plots.open_loop(tmp_path / "open_loop.png", {})
    plots.return_histogram(tmp_path / "returns.png", [])
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_a_failing_plot_leaves_the_old_one(tmp_path):
    path = tmp_path / "open_loop.png"
    plots.open_loop(path, {1: 0.1})
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        plots.open_loop(path, {1: object(), 2: object()})
    assert path.read_bytes() == before
