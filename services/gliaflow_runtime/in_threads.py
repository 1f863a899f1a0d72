"""Call a function for many items in several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def in_threads(call: Callable[[Item], object], items: Iterable[Item], threads: int) -> None:
    """Call ``call`` with each item, in this thread and ``threads`` - 1 others, and return when all calls have ended.

    The threads are daemons that live for this call: a process that ends waits for none of them, unlike those of
    ``concurrent.futures``. To start one takes 0.05 ms.

    Raises
    ------
    BaseException: the first that a call raised. Items that no thread has begun by then are left out.
    """
    rest, lock = iter(items), threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        while not errors:
            with lock:
                try:
                    item = next(rest)
                except StopIteration:
                    return
            try:
                call(item)
            except BaseException as error:
                errors.append(error)

    others = [
        threading.Thread(target=work, name=threading.current_thread().name, daemon=True) for _ in range(threads - 1)
    ]
    for other in others:
        other.start()
    work()
    for other in others:
        other.join()
    if errors:
        raise errors[0]
