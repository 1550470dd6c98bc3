"""Asks the metadata store behind the UI where a run's outputs are: only it knows those of cached steps.

The store speaks gRPC, which the UI's own pages reach as gRPC-Web. Four small messages are read and written here by
field number, which saves a package that exists for no current Python.
"""

import struct
from collections.abc import Iterator, Sequence

from free2ds_common.launch.kfp_api.backend import Backend
from free2ds_common.launch.kfp_api.steps import StepName

Field = tuple[int, int | bytes]

_SERVICE = "ml_metadata.MetadataStoreService"
_RUN_TYPE = "system.PipelineRun"
_TASK_NAME = "task_name"
_OUTPUT_EVENT = 4
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TRAILER = 0x80


def output_uris(backend: Backend, run_id: str, step: StepName, ports: Sequence[str]) -> dict[str, str]:
    """Where a step's outputs are, those that it took from the cache too.

    Args:
        backend: Whose UI is asked.
        run_id: Of the run.
        step: The step.
        ports: Its outputs.

    Returns:
        URI by output; outputs that the store does not know are left out.

    Raises:
        StageError: The UI does not answer or refuses.
    """
    context = _ask(backend, "GetContextByTypeAndName", _text(1, _RUN_TYPE) + _text(2, run_id))
    context_id = _number(_first(_first(context, 1), 1))
    if not context_id:
        return {}
    executions = _ask(backend, "GetExecutionsByContext", _varint(1, context_id))
    ids = [_number(_first(found, 1)) for found in _all(executions, 1) if _task_of(found) in (step.title, step.key)]
    events = _ask(backend, "GetEventsByExecutionIDs", b"".join(_varint(1, number) for number in ids)) if ids else b""
    ports_of = {}
    for event in _all(events, 1):
        port = _key_of(event)
        if _number(_first(event, 4)) == _OUTPUT_EVENT and port in ports:
            ports_of[_number(_first(event, 1))] = port
    asked = b"".join(_varint(1, number) for number in ports_of)
    artifacts = _ask(backend, "GetArtifactsByID", asked) if asked else b""
    return {ports_of[_number(_first(found, 1))]: _string(_first(found, 3)) for found in _all(artifacts, 1)}


def _task_of(execution: bytes) -> str:
    """The step's name among an execution's custom properties."""
    for entry in _all(execution, 5):
        if _string(_first(entry, 1)) == _TASK_NAME:
            return _string(_first(_first(entry, 2), 3))
    return ""


def _key_of(event: bytes) -> str:
    """The output's name in an event's path."""
    for step in _all(_first(event, 3), 1):
        if key := _string(_first(step, 2)):
            return key
    return ""


def _ask(backend: Backend, method: str, message: bytes) -> bytes:
    """One call; an empty answer where the store refuses it, as it does for what it does not know."""
    answer = backend.post(
        "the metadata store",
        f"{backend.ui_host}/{_SERVICE}/{method}",
        b"\0" + struct.pack(">I", len(message)) + message,
        {"Content-Type": "application/grpc-web+proto", "Accept": "application/grpc-web+proto", "X-Grpc-Web": "1"},
    )
    while len(answer) >= 5:
        flags, length = answer[0], struct.unpack(">I", answer[1:5])[0]
        if not flags & _TRAILER:
            return answer[5 : 5 + length]
        answer = answer[5 + length :]
    return b""


def fields(message: bytes) -> Iterator[Field]:
    """The fields of a protocol buffer message: number and value, integers as int, everything else as bytes.

    Raises:
        ValueError: The message is cut off or none.
    """
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _read_varint(message, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _read_varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"no protocol buffer: wire type {kind}")
        if at + size > len(message):
            raise ValueError("no protocol buffer: cut off")
        yield key >> 3, message[at : at + size]
        at += size


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at
    raise ValueError("no protocol buffer: cut off")


def _all(message: bytes | int, number: int) -> Iterator[bytes]:
    if isinstance(message, bytes):
        yield from (value for found, value in fields(message) if found == number and isinstance(value, bytes))


def _first(message: bytes | int, number: int) -> bytes | int:
    if isinstance(message, int):
        return b""
    return next((value for found, value in fields(message) if found == number), b"")


def _number(value: bytes | int) -> int:
    return value if isinstance(value, int) else 0


def _string(value: bytes | int) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def encoded(number: int) -> bytes:
    """A number of 0 or more as a varint."""
    pieces = bytearray()
    while number > 0x7F:
        pieces.append(number & 0x7F | 0x80)
        number >>= 7
    pieces.append(number)
    return bytes(pieces)


def _varint(field: int, value: int) -> bytes:
    return encoded(field << 3 | _VARINT) + encoded(value)


def _text(field: int, value: str) -> bytes:
    data = value.encode()
    return encoded(field << 3 | _BYTES) + encoded(len(data)) + data
