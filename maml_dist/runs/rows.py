"""Rows: the numbers of a run as its user sees them: a list, a data frame, a picture."""

import html
from functools import partial
from io import BytesIO
from typing import Any

Row = dict[str, Any]
SHOWN = 8  # last rows, in a notebook


def _png(figure: Any) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


class Rows(list[Row]):
    """The rows of `metrics.jsonl`: flat dicts, each with its `iteration`."""

    def __repr__(self) -> str:
        if not self:
            return "<no rows of metrics yet>"
        first, last = self[0]["iteration"], self[-1]["iteration"]
        return f"<{len(self)} rows of metrics, iterations {first:,} to {last:,}>"

    def _repr_html_(self) -> str:
        """The last rows as a table."""
        names = [name for name in self.names if any(self._number(row, name) for row in self)]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("iteration", *names))
        body = "".join(
            f"<tr><td>{row['iteration']:,}</td>"
            + "".join(f"<td>{self._number(row, name)}</td>" for name in names)
            + "</tr>"
            for row in self[-SHOWN:]
        )
        return f"<p>{html.escape(repr(self)[1:-1])}</p><table><tr>{head}</tr>{body}</table>"

    @property
    def names(self) -> list[str]:
        """What there are numbers of, in order of their first row."""
        names = {name: None for row in self for name, value in row.items() if name != "iteration"}
        return [*names]

    def frame(self) -> Any:
        """A `pandas.DataFrame` by iteration, NaN where there is no number."""
        import pandas  # type: ignore[import-untyped]

        return pandas.DataFrame(list(self), columns=["iteration", *self.names]).set_index(
            "iteration"
        )

    def plot(self, *names: str) -> Any:
        """A `matplotlib` figure of the named numbers against iterations; by default losses, scores.

        Where they span more than a factor of ten, its scale is logarithmic.

        Raises:
            ValueError: there are no numbers of that name.
        """
        from matplotlib.figure import Figure

        numbers = [name for name in self.names if any(self._number(row, name) for row in self)]
        if unknown := [name for name in names if name not in numbers]:
            raise ValueError(f"{unknown[0]!r}: there are {', '.join(numbers) or 'no numbers yet'}")
        kinds = [name for name in numbers if name.startswith(("loss/", "val/"))]
        usual = [name for name in kinds if not name.rpartition("/")[2].isdigit()]  # no step's own
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        drawn: list[float] = []
        for name in names or usual:
            found = [(row["iteration"], row[name]) for row in self if self._number(row, name)]
            axes.plot(*zip(*found, strict=True), marker="." if len(found) < 30 else "", label=name)
            drawn += [value for _, value in found]
        axes.set_xlabel("meta-iterations")
        if drawn and 0 < 10 * min(drawn) < max(drawn):
            axes.set_yscale("log")
        if names or usual:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
        shown: Any = figure
        shown._repr_png_ = partial(_png, figure)  # in a notebook: of pyplot's figures alone it is
        return shown

    @staticmethod
    def _number(row: Row, name: str) -> str:
        """A number of a row as text; empty where it has none."""
        value = row.get(name)
        return f"{value:.4g}" if isinstance(value, int | float) else ""
