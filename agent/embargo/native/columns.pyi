from array import array
from collections.abc import Sequence

def sort_out(
    parts: Sequence[tuple[bytes, array[int], array[int], bytes, int, int, bool]],
) -> tuple[tuple[bytes, array[int], array[int], array[int], bytes], list[bytes], dict[bytes, list[tuple[int, int]]]]: ...
