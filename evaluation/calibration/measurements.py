"""What was measured of each pair, on disk as it comes, so that a run of hours can be continued."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from cache.entry import StateKind
from evaluation.calibration.pairs import Pair
from evaluation.errors import OptionInvalid

Scores = dict[str, float]  # by measure

_FIRST: Final = "calibration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One pair's scores; all are of the prompt that was asked for."""

    pair: Pair
    from_noise: tuple[Scores, Scores]  #: of two seeds
    from_state: dict[StateKind, dict[int, Scores]]  #: by kind and k

    @property
    def similarity(self) -> float:
        """Cosine of the pair's retrieval vectors."""
        return self.pair.similarity

    def to_json(self) -> dict[str, Any]:
        """As a line of the file."""
        return {
            **asdict(self.pair),
            "from_noise": list(self.from_noise),
            "from_state": self.from_state,
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Measurement:
        """Of a line of the file."""
        first, second = line["from_noise"]
        return cls(
            pair=Pair(cached=line["cached"], asked=line["asked"], similarity=line["similarity"]),
            from_noise=(first, second),
            from_state={
                StateKind(kind): {int(k): scores for k, scores in by_k.items()}
                for kind, by_k in line["from_state"].items()
            },
        )


class MeasurementFile:
    """A JSON line for each pair, behind one that says what is being measured.

    Pairs that are drawn later, or more of them, join those that are there.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Raises OptionInvalid where the file holds measurements of something else."""
        self._path = path
        first = json.dumps({_FIRST: about}, sort_keys=True)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(first + "\n")
        lines = path.read_text().splitlines(keepends=True)
        if not lines or lines[0].strip() != first:
            raise OptionInvalid(
                f"{path} was measured with another model or other options: "
                "give another --out, or remove it"
            )
        # A run that was killed may have left half a line behind.
        whole = [line for line in lines[1:] if line.endswith("\n")]
        done = (Measurement.from_json(json.loads(line)) for line in whole)
        self._done = {measurement.pair: measurement for measurement in done}
        path.write_text(first + "\n" + "".join(whole))

    def add(self, measurement: Measurement) -> None:
        """Keep a pair's."""
        with self._path.open("a") as file:
            file.write(json.dumps(measurement.to_json()) + "\n")
        self._done[measurement.pair] = measurement

    def missing(self, pairs: Sequence[Pair]) -> list[tuple[int, Pair]]:
        """Those not measured yet, with their numbers."""
        return [each for each in enumerate(pairs) if each[1] not in self._done]

    def of(self, pairs: Sequence[Pair]) -> list[Measurement]:
        """Those measured of the pairs, in their order."""
        return [self._done[pair] for pair in pairs if pair in self._done]
