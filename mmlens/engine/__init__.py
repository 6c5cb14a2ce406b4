"""Running one prompt under thousands of head masks: the shared-prefix engine and its oracle."""

from mmlens.engine.gated_runs import GatedRuns
from mmlens.engine.masked_runs import PrefixRuns
from mmlens.engine.opening import Engine, open_runs
from mmlens.engine.plain import PlainRuns
from mmlens.engine.prefix import PrefixState, prefix_state
from mmlens.engine.runs import MaskedRuns
from mmlens.engine.self_check import check_against_plain

__all__ = [
    "Engine",
    "GatedRuns",
    "MaskedRuns",
    "PlainRuns",
    "PrefixRuns",
    "PrefixState",
    "check_against_plain",
    "open_runs",
    "prefix_state",
]
