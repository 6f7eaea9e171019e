"""``cgbench.inspect`` describes what a checkpoint holds and what would be loaded, without loading
it.
"""

from typing import TYPE_CHECKING

from cgbench.door.prepare import use_passive_threads
from cgbench.parallel.ranks import Ranks
from cgbench.progress import SILENT, Progress
from cgbench.request.run_request import InspectRequest

if TYPE_CHECKING:
    from cgbench.models.inspection import Inspection


def inspect(request: InspectRequest, *, progress: Progress = SILENT) -> "Inspection":
    """Return what would be loaded of a checkpoint, and whether its graphs can be captured.

    No weight is loaded. What is wrong with the checkpoint is a part of the answer: see
    ``Inspection.is_usable``.

    Raise any of ``cgbench.errors``.
    """
    use_passive_threads()
    from cgbench.measure.setup import choose_device
    from cgbench.models.inspection import inspect_model
    from cgbench.models.loading_plan import loading_of

    device = choose_device(request.device)
    sharing = request.sharing
    ranks = Ranks(0, sharing.num_ranks)
    loading = loading_of(request.model, sharing, device, with_head=True, seed=0, ranks=ranks)
    with progress.working(f"inspect {request.model.ref}"):
        return inspect_model(loading)
