"""Process lock: of some things a process has one, and who changes them has them alone.

The seeds of torch's generator, patched functions of torch, settings of other packages: each is
changed and put back under this one lock, so that threads do not see each other's.
"""

from threading import RLock

EXCLUSIVE = RLock()
