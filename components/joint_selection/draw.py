"""Drawing n records from the pool, and the random control beside them."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from components.joint_selection.scoring import softmax
from free2ds_common.errors import StageError

# What each random word of a record is for, by its column: two draws that shared one would not be independent.
DRAW, CONTROL, TIES = range(3)
_NOISE_WORDS = 3
# What a random word of a source is for: BLAKE2b's "person", which keeps these words apart from those of the records.
ORDER_OF_STRATA, START_OF_STRATA = b"strata: order", b"strata: start"
_HASH_ROWS = 65_536


def record_noise(record_key: pa.Array, seed: int) -> np.ndarray:
    """Random words that depend on the record and the seed only, not on order or sharding.

    Args:
        record_key: Strings, (n,). Records with the same key (true duplicates) get different words: the second one's
            come from the key and the number 1, and so on in input order.
        seed: At least 0.

    Returns:
        uint64, (n, 3): a word for each of DRAW, CONTROL and TIES.
    """
    secret = _secret(seed)

    def digest(text: str) -> bytes:
        return hashlib.blake2b(text.encode(), digest_size=8 * _NOISE_WORDS, key=secret).digest()

    words = np.empty((len(record_key), _NOISE_WORDS), np.uint64)
    for start in range(0, len(record_key), _HASH_ROWS):
        block = record_key.slice(start, _HASH_ROWS).to_pylist()
        words[start : start + len(block)] = np.frombuffer(b"".join(map(digest, block)), "<u8").reshape(-1, _NOISE_WORDS)
    order = np.argsort(words[:, DRAW], kind="stable")
    repeats = words[order[1:], DRAW] == words[order[:-1], DRAW]
    occurrence = 0
    for place in np.flatnonzero(repeats):
        occurrence = occurrence + 1 if place and repeats[place - 1] else 1
        row = order[place + 1]
        words[row] = np.frombuffer(digest(f"{record_key[row].as_py()}#{occurrence}"), "<u8")
    return words


def name_noise(name: str, seed: int, purpose: bytes) -> int:
    """A random word of 64 bits that depends on the name, the seed and the purpose only.

    Args:
        name: Any text.
        seed: At least 0.
        purpose: ORDER_OF_STRATA or START_OF_STRATA.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=_secret(seed), person=purpose).digest()
    return int.from_bytes(digest, "little")


def _secret(seed: int) -> bytes:
    return seed.to_bytes(8, "little")


def gumbel(words: np.ndarray) -> np.ndarray:
    """Standard Gumbel noise from random words.

    Args:
        words: uint64, (n,).

    Returns:
        float64, (n,), finite: 52 bits are used, so that neither 0 nor 1 is ever reached.
    """
    uniform = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return -np.log(-np.log(uniform))


def take_top(keys: np.ndarray, ties: np.ndarray, n: int) -> np.ndarray:
    """Positions of the n largest keys, largest first; the smaller tie word wins among equal keys.

    Args:
        keys: float64, (pool,), no NaN.
        ties: uint64, (pool,).
        n: 0 .. pool.
    """
    if n == 0:
        return np.empty(0, np.int64)
    edge = np.partition(keys, len(keys) - n)[len(keys) - n]
    above, at_edge = np.flatnonzero(keys > edge), np.flatnonzero(keys == edge)
    at_edge = at_edge[np.argsort(ties[at_edge], kind="stable")][: n - len(above)]
    chosen = np.concatenate([above, at_edge])
    return chosen[np.lexsort((ties[chosen], -keys[chosen]))]


def allocate(sizes: np.ndarray, n: int, start: int) -> np.ndarray:
    """Divide n over the strata in proportion to their sizes, at random and without a bias.

    What the exact shares have after the point is given out by systematic sampling: laid end to end, every whole unit
    from a random start on is one more record for the stratum that it lies in. Over all starts each stratum gets its
    exact share on average, whatever the order of the strata; which of them do so together depends on that order.

    Args:
        sizes: int64, (strata,).
        n: At most the sum of `sizes`.
        start: 0 .. sum of `sizes` - 1, where all are equally likely.

    Returns:
        int64, (strata,), sum n: each exact share, rounded down or up.
    """
    total = int(sizes.sum())
    shares, remainders = np.divmod(sizes * n, total)
    passed = (np.cumsum(remainders) - start + total - 1) // total
    divided: np.ndarray = shares + np.diff(passed, prepend=0)
    return divided


def allocate_by_score(groups: Sequence[np.ndarray], keys: np.ndarray, ties: np.ndarray, n: int) -> np.ndarray:
    """Divide n over the strata in proportion to their sizes; what does not divide goes where the next record is best.

    Args:
        groups: Positions of each stratum's records.
        keys: float64, (pool,).
        ties: uint64, (pool,); the smaller one wins among equal keys.
        n: At most the pool.

    Returns:
        int64, (strata,), sum n: each exact share, rounded down or up.
    """
    sizes = np.array([len(members) for members in groups])
    shares, remainders = np.divmod(sizes * n, sizes.sum())
    uneven = np.flatnonzero(remainders)
    following = np.empty(len(uneven), np.int64)
    for place, stratum in enumerate(uneven.tolist()):
        members = groups[stratum]
        following[place] = members[take_top(keys[members], ties[members], int(shares[stratum]) + 1)[-1]]
    shares[uneven[take_top(keys[following], ties[following], n - int(shares.sum()))]] += 1
    return shares


def draw_keys(combined: np.ndarray, temperature: float, sampler: str, noise: np.ndarray) -> np.ndarray:
    """The numbers whose n largest are drawn by "gumbel" and "top".

    A record's key depends on no other record: the n largest of all are the n largest of the n largest of each part.

    Args:
        combined: float64, (n,).
        temperature: Of the softmax, above 0.
        sampler: "top", or "gumbel" for noise in the keys.
        noise: uint64, (n, 3), of `record_noise`.

    Returns:
        float64, (n,).

    Source:
        The Gumbel-top-k trick (Vieira 2014; Kool et al. 2019, section 2).
    """
    # Times the temperature: the same order as score / temperature + noise, and a tiny temperature cannot overflow.
    return combined + temperature * gumbel(noise[:, DRAW]) if sampler == "gumbel" else combined


def draw(
    combined: np.ndarray, temperature: float, n: int, sampler: str, noise: np.ndarray, strata: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose n records of the pool.

    Args:
        combined: float64, (pool,), scores in input order.
        temperature: Of the softmax, above 0.
        n: How many to choose, at most the pool.
        sampler: "reference" is numpy's legacy `choice` with the softmax's probabilities; "gumbel" has the same
            distribution (the n largest of score / temperature + Gumbel noise) and depends on no order; "top" takes the
            n largest scores.
        noise: uint64, (pool, 3), of `record_noise`.
        strata: int, (pool,), the stratum of each record, numbered in an order that says nothing about it; all the same
            for one draw over the whole pool.
        seed: Of the reference sampler and of the shares of the strata, 0 .. 2**32 - 1.

    Returns:
        The chosen positions, int64 (n,), in draw order stratum by stratum; and the probabilities, float64 (pool,),
        summing to 1 in each stratum.

    Raises:
        StageError: The reference sampler has fewer records with a probability above 0 than it must draw.

    Source:
        docs/method.md, section 5.
    """
    generator = np.random.RandomState(seed)
    keys = draw_keys(combined, temperature, sampler, noise)
    probability = np.empty(len(combined))
    chosen = []
    sizes = np.unique(strata, return_counts=True)[1]
    groups = np.split(np.argsort(strata, kind="stable"), np.cumsum(sizes)[:-1])
    if sampler == "top":
        shares = allocate_by_score(groups, keys, noise[:, TIES], n)
    else:
        shares = allocate(sizes, n, name_noise("", seed, START_OF_STRATA) * len(combined) >> 64)
    for members, share in zip(groups, shares, strict=True):
        probability[members] = p = softmax(combined[members], temperature)
        if sampler == "reference":
            if np.count_nonzero(p) < share:
                raise StageError(
                    f"sampler reference: only {np.count_nonzero(p)} of {len(p)} records have a probability above 0 at "
                    f"temperature {temperature:g}, wanted {share}. Raise temperature, or use sampler gumbel."
                )
            chosen.append(members[generator.choice(len(p), size=int(share), replace=False, p=p)])
        else:
            chosen.append(members[take_top(keys[members], noise[members, TIES], int(share))])
    return np.concatenate(chosen), probability
