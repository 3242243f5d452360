"""The interface for programs and notebooks: a spec in, rows out."""

import importlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

import pyarrow as pa
from rich.console import Console

from chatbot.errors import UsageError
from ray_jobs.cluster.job import ray_address
from ray_jobs.driver import run as main_job
from ray_jobs.driver.run import Where
from ray_jobs.matrix.rows import Row
from ray_jobs.provenance import new_run_id
from ray_jobs.report.terminal import Reporter, print_matrix
from ray_jobs.results.run import FinishedRun
from ray_jobs.results.samples import ROW_SCHEMA
from ray_jobs.results.store import RunDirectory
from ray_jobs.spec import Spec
from ray_jobs.wandb_sink.mode import resolve_mode
from ray_jobs.wandb_sink.sink import WandbSink

WIDTH = 160  # characters of a table
HTML = '<pre style="line-height: normal; overflow-x: auto">{code}</pre>'


@dataclass(frozen=True, repr=False)
class Matrix(Sequence[Row]):
    """The rows of a run; shown, they are the tables that the terminal prints."""

    rows: tuple[Row, ...]
    margin: float
    place: str  # the run directory

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        return self.rows[index]

    def __repr__(self) -> str:
        return self._printed().export_text()

    def _repr_html_(self) -> str:
        return self._printed().export_html(inline_styles=True, code_format=HTML)

    def _printed(self) -> Console:
        console = Console(file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False)
        print_matrix(self.rows, self.margin, console)
        return console

    def to_arrow(self) -> pa.Table:
        """The rows with the columns of ``matrix.parquet``."""
        return pa.Table.from_pylist([asdict(row) for row in self.rows], schema=ROW_SCHEMA)

    def to_pandas(self) -> Any:
        """The rows as a ``pandas.DataFrame``. Raises UsageError where pandas is not installed."""
        try:
            importlib.import_module("pandas")
            return self.to_arrow().to_pandas()
        except ModuleNotFoundError:
            raise UsageError("pandas is not installed: pip install pandas, or use to_arrow()") from None


def run(
    spec: Spec, out: str = "results", run_id: str | None = None, address: str | None = None, wandb: str = "off"
) -> Matrix:
    """Measures what the spec asks for, as ``latency-matrix matrix`` does; progress goes to stderr.

    Args:
        spec: what to measure.
        out: the results root, a folder or any ``pyarrow.fs`` URI.
        run_id: the run's folder in it; a new one by default.
        address: ``local``, ``auto`` or ``HOST:PORT``, by default ``$RAY_ADDRESS``, else ``local``. Where this process
            is already connected to Ray (``ray.init``), that connection is used, and left as it was.
        wandb: ``auto``, ``online``, ``offline`` or ``off``.

    Raises:
        UsageError: the model, the corpus, the cluster or the directory can't be used; nothing was written then.
        StoreError: a launch could not be kept; the run can be resumed.
    """
    mode, name = resolve_mode(wandb), run_id or new_run_id()
    directory = RunDirectory.named(out, name)
    where = Where(ray_address(address))
    sink, reporter = WandbSink(mode, directory), Reporter(spec.budget, spec.precision)
    rows = main_job.run(spec, name, directory, where, sink, reporter)
    return Matrix(tuple(rows), spec.margin, directory.shown)


def open_run(place: str) -> FinishedRun:
    """A finished run, read from its directory: a folder or a URI. Raises UsageError."""
    return FinishedRun.of(str(place))
