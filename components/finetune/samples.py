"""The records to learn from, as tokens in memory: read once, reachable by number."""

import json
import logging
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from free2ds_common.datasets import open_dataset, sha256_of_file
from free2ds_common.errors import StageError
from free2ds_common.inference.conversations import Conversation, conversation_tokens
from free2ds_common.inference.prompts import Tokenizer
from free2ds_common.inference.unknown_words import UnknownWords
from free2ds_common.schemas import RECORDS
from free2ds_common.turns import RecordProblem, image_of, kind_of, turns_of

logger = logging.getLogger(__name__)

_NAMED = 3


@dataclass(frozen=True)
class Sample:
    """A record to learn from.

    Attributes:
        ids: int32, (tokens,); the picture is one token.
        learnt: bool, (tokens,): whether it is an answer's.
        image: Path of its picture below the image root; None for text alone.
    """

    ids: np.ndarray
    learnt: np.ndarray
    image: str | None


class Samples:
    """All records to learn from. A sequence, which torch's DataLoader takes as a data set.

    Attributes:
        lengths: int64, (N,): tokens of each, the picture's included.
        has_picture: bool, (N,).
        num_read: Records that came in.
        rejected: Unusable ones per reason.
        truncated: Usable ones that were cut off at the end.
    """

    def __init__(
        self,
        ids: np.ndarray,
        learnt: np.ndarray,
        sizes: Sequence[int],
        images: Sequence[str | None],
        vision_tokens: int,
    ) -> None:
        """Keep the tokens of all records.

        Args:
            ids: int32, those of all records one after the other.
            learnt: bool, the same.
            sizes: How many each record has.
            images: Their pictures.
            vision_tokens: Tokens that a picture becomes.
        """
        counts = np.array(sizes, dtype=np.int64)
        self._ids, self._learnt, self._ends = ids, learnt, np.cumsum(counts)
        self._images = list(images)
        self.has_picture = np.array([image is not None for image in images], dtype=bool)
        self.lengths = counts + np.where(self.has_picture, vision_tokens - 1, 0)
        self.num_read = len(counts)
        self.rejected: Counter[str] = Counter()
        self.truncated = 0

    def __len__(self) -> int:
        """Usable records."""
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        """One of them."""
        inside = slice(self._ends[index - 1] if index else 0, self._ends[index])
        return Sample(self._ids[inside], self._learnt[inside], self._images[index])

    @property
    def num_learnt(self) -> int:
        """Tokens of answers in all records."""
        return int(self._learnt.sum())


def read_samples(
    where: str, folder: Path, tokenizer: Tokenizer, image_token: int, eos: int, vision_tokens: int, max_length: int
) -> Samples:
    """Read the records and turn each into tokens.

    Args:
        where: A JSON list of LLaVA records, or a folder with records/2.
        folder: The model's, for messages.
        tokenizer: The decoder's.
        image_token: Stands for a picture.
        eos: Ends an answer.
        vision_tokens: Tokens that a picture becomes.
        max_length: Tokens of a record, its picture's included; more are cut off.

    Raises:
        StageError: There is nothing to learn from, or the tokenizer does not know most of its words.
    """
    ids, learnt, sizes = array("i"), bytearray(), array("q")
    images: list[str | None] = []
    rejected: Counter[str] = Counter()
    num_read = truncated = 0
    words, unknown = UnknownWords(folder), getattr(tokenizer, "unk_token_id", None)
    for number, record in enumerate(_records(where)):
        num_read += 1
        try:
            found, image = _tokens(record, tokenizer, image_token, eos)
            kept = _cut(found, image_token, vision_tokens, max_length)
        except RecordProblem as problem:
            rejected[problem.reason] += 1
            if rejected.total() <= _NAMED:
                logger.warning("record %d of %s is left out: %s", number, where, problem)
            continue
        truncated += len(kept.ids) < len(found.ids)
        words.add(found.ids.count(unknown) if unknown is not None else 0, len(found.ids))
        ids.extend(kept.ids)
        learnt.extend(kept.learnt)
        sizes.append(len(kept.ids))
        images.append(image)
    if not images:
        raise StageError(f"{where}: none of {num_read} records can be learnt from ({dict(rejected)}).")
    words.check()
    if warning := words.warning():
        logger.warning("%s", warning)
    samples = Samples(np.frombuffer(ids, np.int32), np.frombuffer(learnt, bool), sizes, images, vision_tokens)
    samples.num_read, samples.rejected, samples.truncated = num_read, rejected, truncated
    return samples


def _records(where: str) -> Iterator[object]:
    """The records, one after the other.

    Raises:
        StageError: Nothing is there, or no list of records.
    """
    path = Path(where)
    if path.is_dir():
        for row in open_dataset(path, RECORDS).rows(["raw"]):
            yield json.loads(row["raw"])
        return
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise StageError(f"{where}: cannot be read ({error.strerror}). Give a selection's file.") from error
    except (ValueError, RecursionError):
        raise StageError(
            f"{where}: is no JSON list of records. Give a selection as joint_selection writes it."
        ) from None
    if not isinstance(found, list):
        raise StageError(f"{where}: is {kind_of(found)}, wanted a JSON list of records.")
    yield from found


def records_sha256(where: str) -> str:
    """Hex sha256 of the records that `read_samples` reads.

    Raises:
        StageError: Nothing is there.
    """
    path = Path(where)
    if not path.exists():
        raise StageError(f"{where}: no such file. Give a selection as joint_selection writes it, or records/2.")
    return open_dataset(path, RECORDS).sha256 if path.is_dir() else sha256_of_file(path)


def _tokens(record: object, tokenizer: Tokenizer, image_token: int, eos: int) -> tuple[Conversation, str | None]:
    """A record's conversation and picture; raises RecordProblem."""
    if not isinstance(record, dict):
        raise RecordProblem("not_an_object", f"is {kind_of(record)}, wanted an object")
    told: Mapping[str, Any] = record
    image = image_of(told)
    return conversation_tokens(turns_of(told), image is not None, tokenizer, image_token, eos), image


def _cut(found: Conversation, image_token: int, vision_tokens: int, max_length: int) -> Conversation:
    """A conversation without what is beyond `max_length`.

    Raises:
        RecordProblem: No answer or not the whole picture is left.
    """
    picture = found.ids.index(image_token) if image_token in found.ids else None
    room = max_length - (vision_tokens - 1 if picture is not None else 0)
    if len(found.ids) <= room:
        return found
    kept = Conversation(found.ids[: max(0, room)], found.learnt[: max(0, room)])
    if not any(kept.learnt) or (picture is not None and picture >= room):
        raise RecordProblem("too_long", f"has no answer within max_length, {max_length} tokens")
    return kept
