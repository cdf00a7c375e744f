"""The report of an audit: one HTML file without outside assets, and its two pictures."""

import base64
import html
import io
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import reweight_jax as rw
from experiments import _audit_ledger, _pictures
from experiments._audit_ledger import Ledger
from reweight_jax import runlog

MAX_PAIRS = 10
WORDS = {"noise": "called wrong", "rare": "called rare", "": ""}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em;
  color: #222; background: #fff; }
h1 { font-size: 1.6em; line-height: 1.25; } h2 { font-size: 1.2em; margin-top: 2em; }
table { border-collapse: collapse; margin: 1em 0; } caption { text-align: left; color: #555; }
th, td { padding: 0.3em 0.7em; border-bottom: 1px solid #ddd; text-align: left; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td img { display: block; width: 64px; height: 64px; object-fit: contain; background: #eee;
  image-rendering: pixelated; }
img.picture { max-width: 100%; height: auto; }
tr.noise td:first-child { border-left: 6px solid #D55E00; }
tr.rare td:first-child { border-left: 6px solid #009E73; }
.scroll { overflow-x: auto; }
"""


class Story(NamedTuple):
  """What the report tells beside the ledger."""

  title: str  # of the data set, with the noise that was put into it
  facts: Mapping[str, str]  # what was looked at, and how
  settings: Mapping[str, Any]  # every flag
  versions: Mapping[str, str | None]
  files: Sequence[str] | None  # row of the data set -> file, of a folder
  quality: Mapping[str, Mapping[str, float]]
  calls: Mapping[str, float] | None
  weights: str  # in words, what weights.npz does


def headline(ledger: Ledger, title: str) -> str:
  """The finding in one line."""
  called = int((ledger.kind == "noise").sum())
  return f"{called} of {len(ledger.ids)} labels of {title} look wrong"


def draw(folder: pathlib.Path, ledger: Ledger, images: np.ndarray, names: Sequence[str]) -> None:
  """Draws gallery.png and scores.png.

  Args:
    folder: where.
    ledger: what was found.
    images: all of the data set's.
    names: of the classes.
  """
  given, suggested, kind = ledger.given_label, ledger.suggested_label, ledger.kind
  rows = min(len(np.unique(given)), 10)
  figure = _pictures._figure(9, 1.2 * rows + 1)
  rw.plotting.issue_gallery(
    figure.subplots(), images[ledger.row], given, suggested, ledger.score, names, kinds=kind
  )
  _pictures._save(figure, folder / "gallery.png", None)
  figure = _pictures._figure(17, 4.8)
  axes = figure.subplots(1, 3)
  measures = ledger.measures
  rw.plotting.difficulty_histogram(axes[0], measures["held_out_error"], kind)
  for place, name, words, unit in (
    (axes[1], "memorization", "memorization", "accuracy in minus out"),
    (axes[2], "feature_neighbor_disagreement", "disagreement", "neighbors with another label"),
  ):
    rw.plotting.difficulty_map(
      place,
      measures["held_out_error"],
      measures[name],
      kind,
      names=("held-out error", words),
      units=("nats", unit),
    )
  _pictures._save(figure, folder / "scores.png", None)


def write(
  folder: pathlib.Path,
  ledger: Ledger,
  images: np.ndarray,
  names: Sequence[str],
  story: Story,
  top: int,
) -> None:
  """Writes report.html, which holds the pictures that `draw` left in the folder."""
  parts = [
    f"<h1>{_text(headline(ledger, story.title))}</h1>",
    _facts(ledger, story),
    _reading(),
    _quality(story, top),
    "<h2>The most suspicious labels of each class</h2>",
    _picture(folder / "gallery.png", "a row of suspicious images for each given class"),
    f"<h2>The {min(top, len(ledger.ids))} most suspicious labels</h2>",
    _examples(ledger, images, names, story, top),
    "<h2>Which classes are taken for which</h2>",
    _pairs(ledger, names),
    "<h2>Where they lie</h2>",
    _picture(folder / "scores.png", "histogram of held-out error, and two maps of scores"),
    "<h2>Settings</h2>",
    _table(("flag", "value"), ([name, _said(value)] for name, value in story.settings.items())),
    "<h2>Versions</h2>",
    _table(("of", "version"), ([name, _said(value)] for name, value in story.versions.items())),
  ]
  body = "\n".join(part for part in parts if part)
  runlog.write_text(
    folder / "report.html",
    "<!DOCTYPE html>\n"
    '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>Label audit of {_text(story.title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
    f"<body>\n{body}\n</body>\n</html>\n",
  )


def _facts(ledger: Ledger, story: Story) -> str:
  counts = {kind: int((ledger.kind == kind).sum()) for kind in WORDS}
  differs = int((ledger.given_label != ledger.suggested_label).sum())
  lines = dict(story.facts) | {
    "Called wrong": f"{counts['noise']} ({100 * counts['noise'] / len(ledger.ids):.1f} %)",
    "Called rare": f"{counts['rare']}: another label is suggested, but it may well be right",
    "Another label suggested": f"{differs}; networks that had not seen it preferred the given one "
    f"of {100 - 100 * differs / len(ledger.ids):.1f} %. The fewer these are, the more of what is "
    "called wrong are their own mistakes",
    "Candidates of confident learning": f"{int(ledger.is_candidate.sum())}, a stricter call, the "
    "column is_candidate of the ledger",
    "Files": "ledger.csv and ledger.npz, all examples by rank; weights.npz, for training by "
    f"--example_weights: {story.weights}",
  }
  items = (f"<li><b>{_text(name)}:</b> {_text(words)}</li>" for name, words in lines.items())
  return f"<ul>\n{chr(10).join(items)}\n</ul>"


def _reading() -> str:
  return """<h2>How to read it</h2>
<p>Several networks were each trained on a part of the examples. <b>Held-out error</b> is the mean
loss, in nats, of those that were not trained on an example, and the <b>suggested label</b> is the
one that they find likeliest on average; its probability stands beside it. The <b>score</b>, from 0
to 1, is the mean of two ranks: how far the given label is behind another one for the held-out
networks, and how far it was so on average while a network was trained on all of the examples.
<b>Memorization</b> is how much more often the given label is predicted by the networks that were
trained on the example. <b>Neighbors</b> is the share of the nearest examples, in the features of a
trained network, that have another label.</p>
<p>Where another class is suggested a label is <b>called wrong</b> if its score is high and its
neighbors are near and of other labels, and <b>called rare</b> if it lies apart, among others of its
label, or is less suspicious: the networks may not know its like. It is one or the other, by ranks
among the hardest. Both are calls, no proofs: look at the images. Even of a data set without any
wrong label some are called so.</p>"""


def _quality(story: Story, top: int) -> str:
  if not story.quality:
    return ""
  head, *rows = _audit_ledger.quality_rows(story.quality, top)
  calls = story.calls or {}
  return (
    "<h2>How well it finds the labels known to be wrong</h2>\n"
    f"<p>Of what is called wrong {100 * calls['precision']:.0f} % is, and of what is wrong "
    f"{100 * calls['recall']:.0f} % is called so.</p>\n{_table(head, rows)}"
  )


def _examples(
  ledger: Ledger, images: np.ndarray, names: Sequence[str], story: Story, top: int
) -> str:
  head = ["rank", "image", "index", "given", "suggested", "its probability", "score"]
  head += ["held-out error (nats)", "memorization", "neighbors", "call"]
  head += ["path"] if story.files is not None else []
  head += ["true"] if ledger.true_label is not None else []
  rows, kinds = [], []
  for place in range(min(top, len(ledger.ids))):
    of = lambda name: f"{ledger.measures[name][place]:.2f}"  # noqa: B023
    row: list[Any] = [str(place + 1), _Markup(_thumbnail(images[ledger.row[place]]))]
    row += [str(ledger.ids[place]), names[ledger.given_label[place]]]
    row += [names[ledger.suggested_label[place]], f"{ledger.suggested_probability[place]:.2f}"]
    row += [f"{ledger.score[place]:.3f}", of("held_out_error"), of("memorization")]
    row += [of("feature_neighbor_disagreement"), WORDS[str(ledger.kind[place])]]
    row += [story.files[ledger.row[place]]] if story.files is not None else []
    if ledger.true_label is not None:
      is_wrong = ledger.true_label[place] != ledger.given_label[place]
      row += [names[ledger.true_label[place]] if is_wrong else "as given"]
    rows.append(row)
    kinds.append(str(ledger.kind[place]))
  return f'<div class="scroll">{_table(head, rows, kinds)}</div>'


def _pairs(ledger: Ledger, names: Sequence[str]) -> str:
  pairs = _audit_ledger.confused_pairs(ledger)
  if not pairs:
    return "<p>No label is called wrong.</p>"
  rows = [
    [names[given], names[suggested], str(count), f"{100 * share:.1f} %"]
    for given, suggested, count, share in pairs[:MAX_PAIRS]
  ]
  head = ("given", "suggested", "labels called wrong", "of the given class")
  return _table(head, rows, caption=f"{len(rows)} of {len(pairs)} pairs of classes")


class _Markup(str):
  """What is HTML already."""


def _table(
  head: Sequence[str],
  rows: Iterable[Sequence[str]],
  classes: Sequence[str] | None = None,
  caption: str = "",
) -> str:
  """A table; a column whose cells all read as numbers is set to the right."""
  body = [list(row) for row in rows]
  numeric = [all(_is_number(row[i]) for row in body) for i in range(len(head))]
  mark = lambda i: ' class="number"' if numeric[i] else ""
  lines = ["<table>", f"<caption>{_text(caption)}</caption>" if caption else ""]
  heads = "".join(f"<th{mark(i)}>{_text(word)}</th>" for i, word in enumerate(head))
  lines += [f"<thead><tr>{heads}</tr></thead>", "<tbody>"]
  for number, row in enumerate(body):
    kind = f' class="{classes[number]}"' if classes is not None and classes[number] else ""
    cells = "".join(f"<td{mark(i)}>{_text(cell)}</td>" for i, cell in enumerate(row))
    lines.append(f"<tr{kind}>{cells}</tr>")
  return "\n".join([*(line for line in lines if line), "</tbody>", "</table>"])


def _is_number(cell: str) -> bool:
  try:
    float(cell.removesuffix("%"))
  except ValueError:
    return False
  return True


def _text(words: str) -> str:
  return words if isinstance(words, _Markup) else html.escape(str(words))


def _said(value: Any) -> str:
  return "default" if value is None else str(value)


def _thumbnail(image: np.ndarray) -> str:
  pixels = image.squeeze(-1) if image.shape[-1] == 1 else image
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, format="PNG")
  return f'<img alt="example" src="{_embedded(buffer.getvalue())}">'


def _picture(path: pathlib.Path, words: str) -> str:
  return f'<p><img class="picture" alt="{_text(words)}" src="{_embedded(path.read_bytes())}"></p>'


def _embedded(png: bytes) -> str:
  return f"data:image/png;base64,{base64.b64encode(png).decode()}"
