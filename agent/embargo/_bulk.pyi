from array import array
from collections.abc import Container, Sequence

def scan(
    data: bytes, end: int, suspects: Container[bytes] | None
) -> tuple[bytes, array[int], array[int], bytes, list[tuple[int, int, int]]]: ...
def sort_out(
    given: Sequence[tuple[bytes, array[int], array[int], bytes, int, int, bool]],
) -> tuple[tuple[bytes, array[int], array[int], array[int], bytes], list[bytes], dict[bytes, list[tuple[int, int]]]]: ...
def table(blob: bytes, starts: array[int], lines: array[int], sources: array[int], kinds: bytes, homes: int) -> bytes: ...
