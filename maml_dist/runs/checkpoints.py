"""Checkpoints: safetensors and JSON in a folder, local or on any `pyarrow.fs` file system.

Each file says what it is of: iteration, recipe, checksums. `index.json` names the last few and the
best, with their scores; where it is lost it is made again from the files. What the model has beside
its meta-parameters is written once, to `fixed.safetensors`. Opening a checkpoint executes nothing.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from maml_dist.core.schema import from_json
from maml_dist.loggers.lines import say
from maml_dist.runs.checkpoint_header import Expect, Header, Metadata, digest, read_tensors
from maml_dist.runs.checkpoint_index import INDEX, INDEX_BYTES, Entry, Index, best_of, better
from maml_dist.runs.folder import Folder, folder_of

FIXED = "fixed.safetensors"
TRIED = 1000  # checkpoints that are not whole, before no other is looked for
FILE = re.compile(r"\d{8,18}\.safetensors")


class Checkpoints:
    """The checkpoints of one run: the last few, and the best by validation."""

    def __init__(
        self,
        where: str | Path,
        *,
        keep: int = 3,
        run: str | None = None,
        belongs: Callable[[Metadata], None] = lambda metadata: None,
        scores: Callable[[], Mapping[int, float | None]] = dict,
    ) -> None:
        """Read the index; without one, but with files, make it again from them.

        Args:
            where: a folder, or a URI of `pyarrow.fs`.
            keep: how many of the last are kept.
            run: the folder of the run that writes.
            belongs: raises ValueError where a checkpoint is of another run.
            scores: of the iterations that were validated, where the index is lost.

        Raises:
            ValueError: neither index nor files serve.
        """
        self.folder = Folder(where)
        self._keep, self._belongs, self._scores = keep, belongs, scores
        self._run = run
        self.owner: str | None = None  # the folder of the run that has written
        self._verified: set[Entry] = set()
        self.entries: list[Entry] = []
        self.fixed: str | None = None  # sha256 of the fixed file
        self._void: set[str] = set()  # files that are to be removed
        self._best: Entry | None = None
        self._maximize: bool | None = None
        content = self.folder.read(INDEX, most=INDEX_BYTES)
        if content is None:
            self._rebuild("is lost")
            return
        try:
            index: Index = from_json(content, Index, INDEX)  # one cut at the bound is no JSON
        except ValueError as error:
            self._rebuild(f"is damaged ({error})")
            return
        self.entries, self._best, self._maximize = index.last, index.best, index.maximize
        self.fixed, self.owner = index.fixed, index.run

    @property
    def by_this_version(self) -> bool:
        """Whether the index knows what 0.1.0 did not write."""
        return self._maximize is not None

    @property
    def last(self) -> Entry | None:
        """The latest checkpoint that is whole, if there is any; a word says which are not.

        Raises:
            ValueError: there are some, and none is whole.
        """
        return self._whole(lambda: self.entries[-1] if self.entries else None)

    @property
    def best(self) -> Entry | None:
        """The best checkpoint that is whole, if there is any; otherwise as `last`."""
        return self._whole(lambda: self._best)

    @property
    def noted_best(self) -> Entry | None:
        """The best checkpoint by the index, whole or not: nothing is read for it."""
        return self._best

    def save(
        self, tensors: dict[str, Tensor], *, iteration: int, recipe: str, maximize: bool
    ) -> Entry:
        """Write a checkpoint, not validated yet; drop those that are neither last nor best.

        `recipe`, the whole configuration as text, stands in the file beside the weights.

        Raises:
            OSError: it cannot be written; what was there before is whole.
        """
        metadata = {"iteration": str(iteration), "recipe": recipe, "maximize": json.dumps(maximize)}
        if self.fixed:
            metadata["fixed"] = self.fixed
        content = save(tensors, metadata={**metadata, "sha256": digest(metadata, tensors)})
        name = f"{iteration:08d}.safetensors"
        entry = Entry(name, iteration, None, hashlib.sha256(content).hexdigest(), validated=False)
        self.folder.write(name, content)
        self._verified.add(entry)
        self._maximize = maximize
        earlier = [old for old in self.entries if old.iteration < iteration]
        best = self._best if self._best and self._best.iteration != iteration else None
        self._put([*earlier, entry][-self._keep :], best or entry)
        return entry

    def judge(self, score: float | None) -> None:
        """Give the latest checkpoint its score; None: it diverged.

        Raises:
            OSError: the index cannot be written.
        """
        *earlier, last = self.entries
        score = score if score is not None and math.isfinite(score) else None
        entry = replace(last, score=score, validated=True)
        self._verified.add(entry)
        best = self._best
        if best in (None, last) or better(score, best.score, maximize=bool(self._maximize)):
            best = entry
        self._put([*earlier, entry], best)

    def save_fixed(self, tensors: dict[str, Tensor]) -> None:
        """Write what the model has beside its meta-parameters, before the first checkpoint.

        Raises:
            OSError: it cannot be written.
        """
        apart = {name: value.contiguous().clone() for name, value in tensors.items()}
        content = save(apart)  # it refuses tensors that share memory
        self.folder.write(FIXED, content)
        self.fixed = hashlib.sha256(content).hexdigest()

    def load_fixed(self, expect: Expect) -> dict[str, Tensor]:
        """What `save_fixed` wrote.

        Raises:
            ValueError: it is missing, damaged or of another model.
        """
        hint = "it holds what the model has beside its meta-parameters; put back the run's own"
        try:
            return read_tensors(self.folder, FIXED, sha256=self.fixed, expect=expect)[0]
        except ValueError as error:
            raise ValueError(f"{error} ({hint})") from None

    def load(
        self, which: str = "best", *, expect: Expect = lambda header: None
    ) -> tuple[dict[str, Tensor], Entry]:
        """The tensors of the "best" or "last" checkpoint, or of a file by its path.

        `expect` sees what a file says of itself before its weights are read.

        Raises:
            ValueError: there is none, it is damaged, or of another run.
        """
        if which in ("best", "last"):
            folder, entry = self.folder, self.best if which == "best" else self.last
            if entry is None:
                raise ValueError(f"no checkpoint in {folder.path} yet")
            name, sha256 = entry.file, entry.sha256
        else:
            folder, name = folder_of(which)
            entry, sha256 = None, None

        def expected(header: Header) -> None:
            metadata = self._ours(header)
            if metadata.fixed != self.fixed and (metadata.fixed or metadata.sha256):
                raise ValueError(f"{header.path} was trained with another {FIXED} than this run's")
            expect(header)

        tensors, header = read_tensors(folder, name, sha256=sha256, expect=expected)
        return tensors, entry or Entry(which, header.metadata.iteration, None, "")

    def _ours(self, header: Header) -> Metadata:
        """The metadata of a checkpoint of this run; ValueError where it is of another."""
        metadata = header.metadata
        try:
            self._belongs(metadata)
        except ValueError as error:
            raise ValueError(f"{header.path}: {error}") from None
        return metadata

    def _whole(self, choose: Callable[[], Entry | None]) -> Entry | None:
        """The entry chosen, after those that are not whole have been left out."""
        before, dropped = (self.entries, self._best), []
        while (entry := choose()) and entry not in self._verified:
            if not (wrong := self._wrong(entry)):
                self._verified.add(entry)
                continue
            dropped.append(f"{self.folder.path}/{entry.file} {wrong}")
            if len(dropped) == TRIED:
                entry = None
                break
            self.entries = [each for each in self.entries if each.file != entry.file]
            if self._best and self._best.file == entry.file:
                self._best = best_of(self.entries, maximize=self._maximize)
            self.entries = self.entries or ([self._best] if self._best else [])
        more = f"; and {len(dropped) - 3} more" if len(dropped) > 3 else ""
        said = "; ".join(dropped[:3]) + more
        if dropped and not entry:
            self.entries, self._best = before
            raise ValueError(f"{said}: none is whole; to start again, give a new run folder")
        if dropped and entry:
            _say(f"{said}: taking {entry.file} instead")
        return entry

    def _wrong(self, entry: Entry) -> str:
        """What is wrong with a checkpoint's file, or nothing."""
        if self.folder.size(entry.file) is None:
            return "is not there"
        sound = self._sha256(entry.file) == entry.sha256
        return "" if sound else "is damaged: its checksum differs"

    def _sha256(self, name: str) -> str:
        found = hashlib.sha256()
        for part in self.folder.chunks(name):
            found.update(part)
        return found.hexdigest()

    def _rebuild(self, why: str) -> None:
        """The entries of the files that are there, where the index does not serve."""
        names = [name for name in self.folder.names() if FILE.fullmatch(name)]
        where = f"{self.folder.path}/{INDEX} {why}"
        if not names and why == "is lost":
            return  # nothing was saved yet
        scores, skipped, found = self._scores(), [], []
        for name in names:
            try:
                _, header = read_tensors(self.folder, name)
                metadata = self._ours(header)
                if name != f"{metadata.iteration:08d}.safetensors":
                    raise ValueError(f"{header.path} is of iteration {metadata.iteration}")
            except ValueError as error:
                skipped.append(str(error))
                continue
            it, found_sha = metadata.iteration, self._sha256(name)
            found.append((Entry(name, it, scores.get(it), found_sha, it in scores), metadata))
        more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        reasons = "".join(f"; {reason}" for reason in skipped[:3]) + more
        if not found:
            raise ValueError(
                f"{where}, and no checkpoint is whole to make it again from{reasons}; to start "
                "again, give a new run folder"
            )
        self.entries = [entry for entry, _ in found]
        self._verified |= set(self.entries)
        self._maximize, self.fixed = found[-1][1].maximize, found[-1][1].fixed
        self._best = best_of(self.entries, maximize=self._maximize)
        best = f"the best of iteration {self._best.iteration}" if self._best else ""
        _say(
            f"{where}: made again from {len(found)} checkpoints, the last of iteration "
            f"{self.entries[-1].iteration}, {best}{reasons}"
        )

    def _put(self, entries: list[Entry], best: Entry) -> None:
        """Write the index; then remove what it no longer names."""
        before = [*self.entries, *([self._best] if self._best else [])]
        index = Index(entries, best, self._maximize, self.fixed, self._run)
        self.folder.write(INDEX, json.dumps(asdict(index), indent=1).encode())
        self.entries, self._best = entries, best
        self._void |= {old.file for old in before} - {kept.file for kept in (*entries, best)}
        for file in sorted(self._void):
            with suppress(OSError):  # the next time, then
                self.folder.delete(file)
                self._void.discard(file)


@lru_cache  # once a process: a run is opened several times
def _say(text: str) -> None:
    say(text, level="warning")
