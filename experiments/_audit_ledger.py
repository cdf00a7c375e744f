"""What an audit says of every example: the ranked ledger, its quality where the truth is known."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import reweight_jax as rw
from experiments import _measures
from reweight_jax import difficulty, runlog
from reweight_jax.difficulty import scales

MEASURES = (
  *("held_out_error", "low_self_confidence", "low_normalized_margin", "inconsistency"),
  *("memorization", "held_out_variance", "mean_loss", "negative_margin_area"),
  *("neighbor_disagreement", "feature_neighbor_disagreement", "neighbor_distance"),
)
"""The columns of scores, larger is harder."""

SCORE = ("low_normalized_margin", "negative_margin_area")
"""The mean of the ranks of these two is what suspicion is ranked by: how far the label is behind
another one for networks that have not seen it, and how far it was so on average in training.

Average precision of finding wrong labels, an MLP with 18 members, 2000 to 2500 training images:
MNIST with 10 % symmetric noise, Fashion-MNIST with 20 and 40 % and with 20 % pair noise, this one
also trained 4 times as long, by heart; and CIFAR-10N worse_label, an MLP right of one in three.

| ranked by | mnist | f. 20 | f. 40 | pair | long | cifar10n | mean |
| --- | --- | --- | --- | --- | --- | --- | --- |
| these two | 0.945 | 0.928 | 0.931 | 0.766 | 0.734 | 0.598 | 0.817 |
| and both neighbor disagreements | 0.956 | 0.945 | 0.950 | 0.700 | 0.748 | 0.637 | 0.823 |
| mean_loss | 0.945 | 0.944 | 0.941 | 0.694 | 0.722 | 0.611 | 0.810 |
| low_self_confidence, second of these | 0.946 | 0.943 | 0.946 | 0.663 | 0.681 | 0.623 | 0.800 |
| negative_margin_area | 0.945 | 0.936 | 0.936 | 0.748 | 0.601 | 0.606 | 0.795 |
| feature_neighbor_disagreement | 0.881 | 0.883 | 0.875 | 0.695 | 0.691 | 0.562 | 0.765 |
| low_normalized_margin | 0.889 | 0.833 | 0.861 | 0.682 | 0.717 | 0.538 | 0.753 |
| held_out_error | 0.915 | 0.877 | 0.902 | 0.503 | 0.586 | 0.584 | 0.728 |
| neighbor_disagreement | 0.805 | 0.778 | 0.858 | 0.557 | 0.557 | 0.510 | 0.678 |

One seed each. The mean loss of one training is nearly as good at a small part of the price. The
area under the margin is as good as the two until the network knows all labels by heart, which
networks that have not seen the label cannot.
"""

LEAST_HARD = 0.25
"""Share of the examples that a call of noise or rare is made among, or more: see `kinds`."""


class Ledger(NamedTuple):
  """Columns `[examples]`, the most suspicious first."""

  ids: np.ndarray  # the data set's own number of the example
  row: np.ndarray  # its place in the arrays of the data set
  given_label: np.ndarray
  suggested_label: np.ndarray  # the likeliest by the networks that have not seen it
  suggested_probability: np.ndarray
  score: np.ndarray  # in [0, 1]
  kind: np.ndarray  # "noise", "rare" or ""
  is_candidate: np.ndarray  # of confident learning, for those who want a second opinion
  noise_or_rare: np.ndarray  # from -1, rare, to 1, noise; NaN where it is not asked
  measures: dict[str, np.ndarray]
  true_label: np.ndarray | None  # where it is known, to test the tool


def make(
  measured: _measures.Measured,
  labels: np.ndarray,
  rows: np.ndarray,
  ids: np.ndarray,
  true_labels: np.ndarray | None,
) -> Ledger:
  """Ranks examples by suspicion.

  Args:
    measured: what is known of them.
    labels: `[examples]`, as given.
    rows: `[examples]`, where they stand in the data set.
    ids: `[examples]`, its own numbers of them.
    true_labels: `[examples]`, None if unknown.
  """
  probabilities = np.asarray(
    difficulty.held_out_probabilities(jnp.asarray(measured.log_probs), jnp.asarray(measured.masks))
  )
  suggested = probabilities.argmax(axis=1).astype(np.int32)
  # The mean of those known: an example may never have been in a batch of the one training.
  ranks = [scales.ranks(jnp.asarray(measured.scores[name])) for name in SCORE]
  score = np.nanmean(np.stack(ranks), axis=0)
  issues = np.asarray(difficulty.label_issues(jnp.asarray(probabilities), jnp.asarray(labels)))
  kind, vote = kinds(measured.scores, score, issues.mean(), suggested != labels)
  order = np.argsort(-score, kind="stable")
  return Ledger(
    ids[order],
    rows[order],
    labels[order],
    suggested[order],
    probabilities.max(axis=1)[order],
    score[order],
    kind[order],
    issues[order],
    vote[order],
    {name: measured.scores[name][order] for name in MEASURES},
    None if true_labels is None else true_labels[order],
  )


def kinds(
  scores: Mapping[str, np.ndarray], score: np.ndarray, candidates: float, disagrees: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Calls examples "noise" or "rare", and says how much either.

  `difficulty.noise_or_rare` ranks the hardest among themselves, and its zero is their middle. So
  that about half of them may be wrong, they are twice as many as the candidates of confident
  learning, at least a quarter of all. Where another label is suggested, above zero is noise and
  below it rare. To ask for a candidate of confident learning besides calls fewer wrong labels: on
  the data sets of `SCORE` and digits with 10 % noise, precision 0.93, 0.81, 0.83, 0.72, 0.55, 0.99
  and recall 0.70, 0.75, 0.76, 0.69, 0.61, 0.82, without it 0.79, 0.78, 0.82, 0.67, 0.55, 0.96 and
  0.85, 0.86, 0.82, 0.80, 0.62, 0.99.

  Args:
    scores: name -> `[examples]`.
    score: `[examples]`, suspicion.
    candidates: share of the candidates of confident learning.
    disagrees: `[examples]` bool, whether the suggested label is not the given one.

  Returns:
    `[examples]` words, and `[examples]` from -1, rare, to 1, noise; NaN outside of the hardest.
  """
  vote = np.asarray(
    difficulty.noise_or_rare(
      jnp.asarray(score),
      disagreement=jnp.asarray(scores["feature_neighbor_disagreement"]),
      distance=jnp.asarray(scores["neighbor_distance"]),
      hard_share=min(max(LEAST_HARD, 2 * float(candidates)), 1.0),
    )
  )
  return np.select([disagrees & (vote > 0), disagrees & (vote < 0)], ["noise", "rare"], ""), vote


def weights(ledger: Ledger, how: str, num_rows: int) -> np.ndarray:
  """A weight for every row of the data set: 1 for those that were not looked at.

  Args:
    ledger: of those that were.
    how: "drop", 0 for what is called noise and 1 for the rest; or one of `difficulty.MODES`.
    num_rows: how many there are.
  """
  found = np.ones(num_rows, np.float32)
  if how == "drop":
    found[ledger.row] = ledger.kind != "noise"
  else:
    mode = difficulty.MODES[how](10.0)
    found[ledger.row] = difficulty.weights_of_difficulty(jnp.asarray(ledger.score), mode)
  return found


def quality(ledger: Ledger, top: int, setting: _measures.Setting) -> dict[str, dict[str, float]]:
  """How well each column finds the labels that are really wrong; {} if there are none, or all.

  Returns:
    Column -> AUROC, average precision, the share of wrong labels among its `top` first, and its
    price in trainings. The last row is what is called noise: its precision and recall.
  """
  if ledger.true_label is None:
    return {}
  is_wrong = ledger.given_label != ledger.true_label
  if is_wrong.all() or not is_wrong.any():
    return {}
  price = {name: float(_measures.COSTS[name](setting)) for name in MEASURES}
  price["score"] = sum(price[name] for name in SCORE)
  price["random"] = 0.0
  random = np.random.default_rng(0).uniform(size=len(is_wrong))
  columns = {"score": ledger.score, **ledger.measures, "random": random}
  found: dict[str, dict[str, float]] = {}
  for name, column in columns.items():
    known = np.isfinite(column)
    scores, wrong = column[known], is_wrong[known]
    first = np.argsort(-scores, kind="stable")[:top]
    found[name] = {
      "auroc": float(rw.metrics.auroc(scores, wrong)),
      "average_precision": float(rw.metrics.average_precision(scores, wrong)),
      "precision_of_top": float(wrong[first].mean()),
      "trainings": price[name],
    }
  return found


def quality_rows(found: Mapping[str, Mapping[str, float]], top: int) -> list[list[str]]:
  """The same as a table, its head first."""
  lines = [["measure", "AUROC", "average precision", f"wrong among the first {top}", "trainings"]]
  for name, numbers in found.items():
    cells = [f"{numbers['auroc']:.3f}", f"{numbers['average_precision']:.3f}"]
    cells += [f"{100 * numbers['precision_of_top']:.0f} %", f"{numbers['trainings']:g}"]
    lines.append([name, *cells])
  return lines


def call_quality(ledger: Ledger) -> dict[str, float] | None:
  """Precision and recall of what is called noise; None where the truth is not known."""
  if ledger.true_label is None:
    return None
  is_wrong, called = ledger.given_label != ledger.true_label, ledger.kind == "noise"
  both = float((is_wrong & called).sum())
  return {"precision": both / max(called.sum(), 1), "recall": both / max(is_wrong.sum(), 1)}


def confused_pairs(ledger: Ledger) -> list[tuple[int, int, int, float]]:
  """(given, suggested, labels called wrong, share of the given class), the most frequent first."""
  called = ledger.kind == "noise"
  pairs = np.stack([ledger.given_label[called], ledger.suggested_label[called]], axis=1)
  found, counts = np.unique(pairs, axis=0, return_counts=True)
  sizes = np.bincount(ledger.given_label)
  return [
    (int(given), int(suggested), int(count), float(count / sizes[given]))
    for count, (given, suggested) in sorted(
      zip(counts.tolist(), found.tolist(), strict=True), key=lambda entry: (-entry[0], entry[1])
    )
  ]


def columns(
  ledger: Ledger, class_names: Sequence[str], files: Sequence[str] | None
) -> dict[str, np.ndarray]:
  """The ledger as named columns, class names and, of a folder, paths among them."""
  names = np.array(class_names)
  found: dict[str, Any] = {"rank": np.arange(1, len(ledger.ids) + 1), "index": ledger.ids}
  if files is not None:
    found["path"] = np.array(files)[ledger.row]
  found |= {"given_label": ledger.given_label, "given": names[ledger.given_label]}
  found |= {"suggested_label": ledger.suggested_label, "suggested": names[ledger.suggested_label]}
  found |= {"suggested_probability": ledger.suggested_probability, "score": ledger.score}
  found |= {"kind": ledger.kind, "noise_or_rare": ledger.noise_or_rare}
  found |= {"is_candidate": ledger.is_candidate, **ledger.measures}
  if ledger.true_label is not None:
    found |= {"true_label": ledger.true_label, "is_wrong": ledger.given_label != ledger.true_label}
  return found


def write(folder: pathlib.Path, table: dict[str, np.ndarray]) -> None:
  """Writes ledger.csv and ledger.npz."""
  runlog.write_npz(folder / "ledger.npz", table)
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(table)
  for row in zip(*(column.tolist() for column in table.values()), strict=True):
    writer.writerow([_cell(value) for value in row])
  runlog.write_text(folder / "ledger.csv", text.getvalue())


def _cell(value: Any) -> Any:
  """Six digits of a number; nothing for NaN."""
  if isinstance(value, float):
    return "" if np.isnan(value) else f"{value:.6g}"
  return value
