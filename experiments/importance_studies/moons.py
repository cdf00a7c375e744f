"""Weights and a small net: forgotten without regularization, kept with it."""

import functools
from typing import Any

import numpy as np

from experiments.importance_studies import nets
from experiments.importance_studies.finding import (
  RATIO_COLORS,
  RATIO_NAMES,
  Finding,
  at_least,
  at_most,
  style,
  words,
)
from reweight_jax import margins

LAMBDAS = (0.1, 0.03, 0.01, 1e-3, 1e-4)
L2_STEPS = 10_000
NORMALIZED_TIMES = (100, 1000, 10_000, 20_000)


def homogeneous_mlp() -> Finding:
  """A net without biases forgets class weights too, and all weightings end at like margins."""
  plain = nets.trained(False)
  ended = nets.train(NORMALIZED_TIMES, start=plain.params, normalized=True)
  first = {name: leaf[0] for name, leaf in nets.init(0, 1).items()}
  plane = nets.GRID.astype(np.float32)
  degree = margins.homogeneity_degree(lambda params: nets.logits(params, plane), first)
  in_domain, grid = nets.gap(plain.in_domain()), nets.gap(plain.on_grid())
  late_domain, late_grid = nets.gap(ended.in_domain()), nets.gap(ended.on_grid())
  apart = np.ptp(ended.margin[-1], axis=-1) / ended.margin[-1].mean(-1)
  counted = [_counted(path.falls) for path in (plain, ended)]  # nets that get it positive
  checks = [
    at_most("gap in the domain at t = 3e4 over that at t = 300", in_domain[-1] / in_domain[2], 0.1),
    at_most("gap in the domain after loss-normalized steps", late_domain[-1], 0.01),
    at_most("gap in the plane after loss-normalized steps", late_grid[-1], 0.02),
    at_least("train accuracy at t = 3e4, least", plain.train_accuracy[-1].min(), 1.0),
    at_most("margins of the three weightings apart, relative, median", np.median(apart), 0.1),
    at_most(
      f"share of plain steps that lower the smoothed margin, greatest of {counted[0]}",
      np.nanmax(plain.falls), 0.01,
    ),
    at_most(
      f"share of loss-normalized steps that lower it, greatest of {counted[1]}",
      np.nanmax(ended.falls), 0.01,
    ),
    at_least(
      "margin after loss-normalized steps over that before, least of 9 nets",
      np.min(ended.margin[-1] / plain.margin[-1]), 1.0,
    ),
  ]  # fmt: skip

  def draw(figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    times = [*plain.times, *(plain.times[-1] + np.array(ended.times))]
    shares = np.concatenate([plain.in_domain(), ended.in_domain()])
    least = np.concatenate([plain.margin, ended.margin])
    for i, ratio in enumerate(nets.RATIOS):
      look = {"color": RATIO_COLORS[ratio], "label": f"weights {RATIO_NAMES[ratio]}"}
      for axes, values in ((left, shares), (right, least)):
        axes.plot(
          range(len(times)), np.median(values[..., i], 1), style(i)["linestyle"], marker="o",
          markersize=4, **look,
        )  # fmt: skip
        axes.fill_between(
          range(len(times)), values[..., i].min(1), values[..., i].max(1),
          color=look["color"], alpha=0.12, linewidth=0,
        )  # fmt: skip
    names = [_short(t) for t in plain.times] + [f"+{_short(t)}" for t in ended.times]
    for axes in (left, right):
      axes.axvline(len(plain.times) - 0.5, color="0.5", linewidth=1, linestyle=":")
      axes.set_xticks(range(len(times)), names, rotation=60)
      axes.set_xlabel("steps of descent (+: loss-normalized)")
      axes.grid(alpha=0.3)
    left.set_ylabel("test examples called positive, share")
    right.set_ylabel("smallest margin / |params|^2")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)

  return Finding(
    "A homogeneous net forgets its class weights once it separates the data",
    "under 16:1 and 1:16 the shares called positive meet once all training examples are right; the "
    "smoothed normalized margin then does not fall; the margins end alike",
    f"gap of the shares in the domain {words(in_domain)} at t = {_list(plain.times)}, and "
    f"{words(late_domain)} after {_list(ended.times)} loss-normalized steps more; in the plane "
    f"{words(grid)}, then {words(late_grid)}; margins at the end, median of 3 seeds, "
    f"{words(np.median(ended.margin[-1], 0), '.4f')}; the smoothed margin, once positive, falls in "
    f"at most {np.nanmax(plain.falls):.1%} of the plain steps ({counted[0]}), and in up to "
    f"{np.nanmax(ended.falls):.0%} of the loss-normalized ones, which are long ({counted[1]})",
    checks,
    {
      "seeds": nets.SEEDS,
      "degree": degree,
      "ratios": nets.RATIOS,
      **{f"plain_{key}": value for key, value in _numbers(plain).items()},
      **{f"loss_normalized_{key}": value for key, value in _numbers(ended).items()},
    },
    draw,
  )


@functools.cache
def _with_l2() -> tuple[nets.Path, ...]:
  return tuple(nets.train((L2_STEPS,), l2=lam) for lam in LAMBDAS)


def regularization() -> Finding:
  """What L2, dropout and early stopping do to the effect of weights."""
  plain, dropped, paths = nets.trained(False), nets.trained(True), _with_l2()
  l2 = np.array([nets.gap(path.in_domain())[0] for path in paths])
  fitted = np.array([np.median(path.train_accuracy[0][:, [0, 2]]) for path in paths])
  stopped, delayed = nets.gap(plain.in_domain()), nets.gap(dropped.in_domain())
  checks = [
    at_least("L2: the gap grows at every step from 1e-4 to 0.1", float(np.all(np.diff(l2) < 0)), 1),
    at_least("L2: gap at 0.03", l2[1], 0.5),
    at_most("L2: gap at 1e-4", l2[-1], 0.2),
    at_most("L2: train accuracy of the weighted nets at 0.03", fitted[1], 0.9),
    at_least("dropout: gap at t = 3e4 ahead of that without", delayed[-1] - stopped[-1], 0.01),
    at_most("dropout: gap at t = 3e4 over that at t = 300", delayed[-1] / delayed[2], 0.25),
    at_least(
      "early stopping: the gap falls from each time to the next",
      float(np.all(np.diff(stopped) < 0)), 1,
    ),
  ]  # fmt: skip

  def draw(figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    left.plot(LAMBDAS, l2, **style(0), marker="o", label="gap under 16:1 and 1:16")
    left.plot(LAMBDAS, fitted, **style(1), marker="s", label="train accuracy of these nets")
    left.set_xlabel(f"strength of L2, weaker to the right; {L2_STEPS:,} steps")
    left.set_ylabel("share")
    left.invert_xaxis()
    left.legend(fontsize=8, loc="center right")
    right.plot(plain.times, stopped, **style(0), marker="o", label="no regularization")
    right.plot(plain.times, delayed, **style(2), marker="^", label="dropout 0.5")
    right.set_xlabel("steps of descent: where it is stopped")
    right.set_ylabel("gap of shares called positive, 16:1 minus 1:16")
    right.legend(fontsize=9)
    for axes in (left, right):
      axes.set_xscale("log")
      axes.set_ylim(0, 1.05)
      axes.grid(alpha=0.3)

  return Finding(
    "L2 and early stopping keep weights, as far as they keep the net from fitting; dropout delays",
    "the gap between 16:1 and 1:16 grows with L2 and is large only where weighted nets do not fit "
    "their training set; it falls with time; with dropout it falls later, but falls",
    f"gap for lambda {words(LAMBDAS, 'g')}: {words(l2)}, train accuracy {words(fitted)}; without "
    f"regularization {words(stopped)} at t = {_list(plain.times)}; with dropout {words(delayed)}",
    checks,
    {
      "seeds": nets.SEEDS,
      "lambdas": LAMBDAS,
      "l2_gap": l2,
      "l2_gap_in_the_plane": [nets.gap(path.on_grid())[0] for path in paths],
      "l2_shares": [path.in_domain()[0] for path in paths],
      "l2_train_accuracy": [path.train_accuracy[0] for path in paths],
      **{f"plain_{key}": value for key, value in _numbers(plain).items()},
      **{f"dropout_{key}": value for key, value in _numbers(dropped).items()},
    },
    draw,
  )


def _numbers(path: nets.Path) -> dict[str, Any]:
  return {
    "times": path.times,
    "train_accuracy": path.train_accuracy,
    "normalized_margin": path.margin,
    "share_in_the_domain": path.in_domain(),
    "share_in_the_plane": path.on_grid(),
    "share_of_falls": path.falls,
  }


def _counted(falls: np.ndarray) -> str:
  return f"{np.sum(~np.isnan(falls))} nets of {falls.size} that get it positive"


def _short(time: int) -> str:
  return f"{time // 1000}k" if time >= 1000 else str(time)


def _list(times: Any) -> str:
  return ", ".join(_short(time) for time in times)
