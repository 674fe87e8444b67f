from array import array
from collections.abc import Container

def scan(
    data: bytes, end: int, suspects: Container[bytes] | None
) -> tuple[bytes, array[int], array[int], bytes, list[tuple[int, int, int]]]: ...
