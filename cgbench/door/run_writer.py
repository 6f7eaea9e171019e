"""Write the results of a run on its first rank, and report what is wrong with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from cgbench.errors import OutputError
from cgbench.progress import Progress
from cgbench.rundir.collective_share import collective_shares
from cgbench.rundir.floor_verdict import floor_lines
from cgbench.rundir.store import RunDirectory
from cgbench.tables.latency import latency_markdown

if TYPE_CHECKING:
    from cgbench.engine.deployment import Deployment, DummyRun
    from cgbench.measure.group import Group
    from cgbench.measure.run_clock import Clock
    from cgbench.rundir.schema import Sample


@dataclass(frozen=True, slots=True)
class RunWriter:
    """A ``RunWriter`` writes each result to the run directory and reports it.

    Raise ``OutputError`` if the disk is full or gone. No finished batch size is lost then.
    """

    directory: RunDirectory
    progress: Progress
    save_tokens: bool

    def capture(self, deployment: "Deployment", largest: "DummyRun") -> None:
        """Write what the graphs cost, the largest step before them, and what they multiply
        padded."""
        from cgbench.kernels.library_rows import padded_products

        self.directory.record.add_capture(asdict(largest))
        self.directory.record.add_padded_products(padded_products())
        with self._writing():
            self.directory.write_capture(
                [cost for graphs in deployment.graph_sets.values() for cost in graphs.costs]
            )

    def group(self, batch_size: int, group: "Group", clock: "Clock") -> None:
        """Write one batch size, and report what is wrong with it and what its collectives take."""
        record = self.directory.record
        record.set_seconds(run=clock.run_s, audit=clock.audit_s)
        record.keep_accounts(batch_size, group.accounts)
        self._report_collectives(group.samples)
        self._warn([*map(_failed, group.failures), *group.doubts])
        tokens = group.tokens if self.save_tokens else ()
        with self._writing():
            written = self.directory.write_group(group.cells, group.samples, tokens, group.blocks)
        self._warn([*floor_lines(written, record)])
        self.progress.log(f"measured batch size {batch_size}")

    def finish(self) -> None:
        """Write that the run is complete."""
        with self._writing():
            self.directory.finish(latency_markdown)

    def _report_collectives(self, samples: "list[Sample]") -> None:
        """Report and record what the ranks' collectives take of each cell's iteration."""
        shares = [*collective_shares(samples)]
        self.directory.record.add_collectives(shares)
        for share in shares:
            self.progress.say(share.text)

    def _warn(self, lines: list[str]) -> None:
        """Report at once what is wrong with a batch size, and keep it in the record."""
        self.directory.record.add_warnings(lines)
        for line in lines:
            self.progress.say(line)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self.directory.path} cannot be written: {error.strerror or error}. Finished "
                "batch sizes are kept, --resume goes on"
            ) from error


def _failed(failure: str) -> str:
    return f"audit failed: {failure}. `cgbench audit` with the same flags says more"
