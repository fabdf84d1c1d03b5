"""SIGTERM and Ctrl-C while a model trains."""

import signal
import threading


class Stopped(Exception):
    """A signal came and the state is saved. `args`: (signal number, step)."""


class Signals:
    """Remembers a SIGTERM or a first Ctrl-C instead of dying of it; a Ctrl-C after that interrupts at once."""

    received: int = 0

    def __enter__(self):
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {
                number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)
            }
        return self

    def _receive(self, number, frame):
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
