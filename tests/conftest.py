"Tests send SIGINT to drivers that they start; a shell that started us in the background has told us, and all our children, to ignore it."
import signal

from browser import page  # noqa: F401  a fixture: headless Chromium

signal.signal(signal.SIGINT, signal.default_int_handler)
