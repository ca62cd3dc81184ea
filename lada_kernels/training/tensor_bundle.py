"""TensorFlow's checkpoints ("tensor bundles"), read without TensorFlow.

``PREFIX.index`` is a table as LevelDB writes it (its doc/table_format.md): blocks of sorted keys and values, a block that says
where those are, and a footer. A key is a tensor's name, its value a BundleEntryProto (tensor_bundle.proto) with dtype, shape
and the place of the bytes in ``PREFIX.data-00000-of-00001``; the empty key has the BundleHeaderProto. Blocks and tensors have a
CRC-32C, masked, which all that is read is checked against.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lada_kernels.training.errors import TrainingError

_MAGIC = 0xDB4775248B80FB57
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}  # by DataType of types.proto
_MESSAGE = dict[int, list]  # of protobuf: the values of every field, by its number


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, and what it is; ``kind`` is its DataType, of which some cannot be read."""

    kind: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


class TensorBundle(Mapping[str, np.ndarray]):
    """A checkpoint by the names of its tensors, each read when it is asked for; float32, float64, int32 and int64.

    Args:
        prefix: path of its files without ``.index`` and ``.data-00000-of-00001``.

    Raises:
        TrainingError: a file is missing, damaged or of another kind; on reading a tensor, likewise, or its dtype is another.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        index = Path(f"{prefix}.index")
        if not index.is_file():
            raise TrainingError(f"no TensorFlow checkpoint at {prefix}: {index.name} is missing")
        try:
            values = dict(_table(index.read_bytes()))
            if b"" not in values:
                raise ValueError("it has no header")
            header = _message(values.pop(b""))
            if header.get(2, [0]) != [0]:
                raise ValueError("its tensors are big-endian")
            self.shards = header.get(1, [0])[0]
            self.entries = {key.decode(): _entry(_message(value)) for key, value in values.items()}
        except ValueError as error:
            raise TrainingError(f"{index} is not a readable TensorFlow checkpoint: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        if entry.kind not in _DTYPES:
            raise TrainingError(f"{name} in {self.prefix}: DataType {entry.kind} cannot be read, only {sorted(_DTYPES)}")
        dtype = np.dtype(_DTYPES[entry.kind])
        path = Path(f"{self.prefix}.data-{entry.shard:05d}-of-{self.shards:05d}")
        if not path.is_file():
            raise TrainingError(f"no TensorFlow checkpoint at {self.prefix}: {path.name} is missing")
        with open(path, "rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.size)
        if len(data) != math.prod(entry.shape) * dtype.itemsize or _masked(crc32c(data)) != entry.checksum:
            raise TrainingError(f"{name} in {path} is damaged: its bytes are not those that were written")
        return np.frombuffer(data, dtype).reshape(entry.shape)


def _entry(fields: _MESSAGE) -> Entry:
    if 7 in fields:
        raise ValueError("it holds a tensor in slices")
    dimensions = [_message(size).get(1, [0])[0] for size in _message(fields.get(2, [b""])[0]).get(2, [])]
    kind, shard, offset, size, checksum = (fields.get(number, [0])[0] for number in (1, 3, 4, 5, 6))
    return Entry(kind, tuple(dimensions), shard, offset, size, checksum)


def _table(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a LevelDB table."""
    footer = file[-48:]
    if footer[40:] != struct.pack("<Q", _MAGIC):
        raise ValueError("it does not end as a table does")
    _, at = _handle(footer, 0)  # of blocks that TensorFlow leaves empty
    index, _ = _handle(footer, at)
    for _, handle in _block(file, *index):
        yield from _block(file, *_handle(handle, 0)[0])


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _block(file: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a block: each key without the bytes that it shares with the one before."""
    block, trailer = _cut(file, offset, size), _cut(file, offset + size, 5)
    if _masked(crc32c(block + trailer[:1])) != int.from_bytes(trailer[1:], "little"):
        raise ValueError("a checksum is wrong")
    if trailer[0]:
        raise ValueError("it is compressed, as TensorFlow writes none")
    end = size - 4 * (1 + int.from_bytes(block[-4:], "little"))  # where its restart points begin
    key, at = b"", 0
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        key = _cut(key, 0, shared) + _cut(block, at, own)
        yield key, _cut(block, at + own, length)
        at += own + length


def _message(data: bytes) -> _MESSAGE:
    """A protobuf message, its nested messages as bytes."""
    fields: _MESSAGE = {}
    value: int | bytes
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
            case 2:
                length, at = _varint(data, at)
                value, at = _cut(data, at, length), at + length
            case 1 | 5 as wire:
                length = 8 if wire == 1 else 4
                value, at = int.from_bytes(_cut(data, at, length), "little"), at + length
            case wire:
                raise ValueError(f"a field has the unknown wire type {wire}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where what follows it begins."""
    value = shift = 0
    while shift < 64:
        byte = _cut(data, at, 1)[0]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number has more than 64 bits")


def _cut(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise ValueError("it is cut short")
    return data[at : at + size]


def _masked(checksum: int) -> int:
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) % 2**32


def _advanced(states: np.ndarray, data: np.ndarray | int) -> np.ndarray:
    """CRC states [...] after one more byte each."""
    return _AFTER_BYTE[(states ^ data) & 255] ^ states >> 8


_AFTER_BYTE = np.arange(256, dtype=np.uint32)  # the state after a byte, for each byte
for _ in range(8):
    _AFTER_BYTE = np.where(_AFTER_BYTE & 1, _AFTER_BYTE >> 1 ^ np.uint32(0x82F63B78), _AFTER_BYTE >> 1)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, RFC 3720).

    The state after more bytes is a linear function, over GF(2), of the state before, plus what those bytes alone make of zero.
    So many stretches of equal length advance side by side, and are then joined in pairs by the linear function of a stretch.
    """
    count = 1 << min(12, max(0, len(data).bit_length() - 7))
    length = len(data) // count
    head = len(data) - count * length
    start = np.full(1, 0xFFFFFFFF, np.uint32)
    for byte in data[:head]:
        start = _advanced(start, byte)
    columns = np.zeros((length, count + 32), np.uint8)
    columns[:, :count] = np.frombuffer(data, np.uint8, offset=head).reshape(count, length).T
    units = np.uint32(1) << np.arange(32, dtype=np.uint32)
    states = np.concatenate((np.zeros(count, np.uint32), units))
    for column in columns:
        states = _advanced(states, column)
    states, shift = states[:count], states[count:]  # shift [32]: what a stretch of zeros makes of every bit
    while len(states) > 1:
        states, shift = _mapped(shift, states[0::2]) ^ states[1::2], _mapped(shift, shift)
    return int(_mapped(shift, start)[0] ^ states[0]) ^ 0xFFFFFFFF


def _mapped(columns: np.ndarray, states: np.ndarray) -> np.ndarray:
    """A linear function, given by its values [32] at the single bits, of states [...]."""
    bits = states[:, None] >> np.arange(32, dtype=np.uint32) & 1
    return np.bitwise_xor.reduce(np.where(bits, columns, np.uint32(0)), axis=1)
