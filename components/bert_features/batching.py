"""Batches of one length: messages are read in windows, and within a window bucketed by length."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from components.bert_features.encoder import Encoder, Tokens
from components.bert_features.messages import MessageSource

# Messages of a window: enough for batches of a single length, and 200 MB of BERT-base's embeddings.
_WINDOW = 65_536
# The first window is small, so that the model starts soon.
_FIRST_WINDOW = 4096
# Long messages make a window smaller: 250 characters each on average.
_WINDOW_CHARACTERS = 16 << 20


@dataclass(frozen=True)
class Window:
    """Messages that are bucketed by length together.

    Attributes:
        keys: Of the messages.
        messages: Texts.
        new: int64, indices of those without a result of an earlier run.
        tokens: Token ids of these.
        num_records: Records that were read for it.
    """

    keys: list[str]
    messages: list[str]
    new: np.ndarray
    tokens: Tokens
    num_records: int


def read_windows(source: MessageSource, encoder: Encoder, is_there: Callable[[str], bool]) -> Iterator[Window]:
    """Window by window; the next one is read and tokenised while the model works on this one.

    Args:
        source: Of the messages.
        encoder: Tokenises.
        is_there: Whether there is a result of the message of a key.
    """
    stream = iter(source)

    def prepare(max_messages: int) -> Window | None:
        before, characters = source.num_records, 0
        keys: list[str] = []
        messages: list[str] = []
        for key, message in itertools.islice(stream, max_messages):
            keys.append(key)
            messages.append(message)
            characters += len(message)
            if characters >= _WINDOW_CHARACTERS:
                break
        if not keys:
            return None
        new = [index for index, key in enumerate(keys) if not is_there(key)]
        tokens = encoder.tokenize([messages[index] for index in new])
        return Window(keys, messages, np.array(new, np.int64), tokens, source.num_records - before)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer") as pool:
        pending = pool.submit(prepare, _FIRST_WINDOW)
        while (window := pending.result()) is not None:
            pending = pool.submit(prepare, _WINDOW)
            yield window


def token_batches(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Divide messages into batches, one per forward pass, each of a single length.

    A message's length thus never depends on its neighbours, and nor does its embedding. Batches of one length mostly
    have the same size: on a CPU, kernels are compiled and cached for each size, and the heap serves them again.

    Args:
        lengths: int, (n,), tokens per message, padding included: `Encoder.padded_lengths`.
        batch_tokens: Maximum tokens of a batch; a single longer message makes a batch of its own.

    Yields:
        int64 indices into `lengths`, the longest messages first; every index once.
    """
    if not len(lengths):
        return
    order = np.argsort(lengths, kind="stable")[::-1]
    _, starts = np.unique(-lengths[order], return_index=True)
    for group in np.split(order, starts[1:]):
        max_messages = max(1, batch_tokens // max(1, int(lengths[group[0]])))
        for start in range(0, len(group), max_messages):
            yield group[start : start + max_messages]
