"""Watch clean and noisy labels compete in every update, and stop before the noise is learnt."""

from .errors import ArgumentTypeError as ArgumentTypeError
from .errors import ArgumentValueError as ArgumentValueError
from .errors import PriorityMonitorError as PriorityMonitorError
from .monitor import GradientMonitor as GradientMonitor
from .records import Decision as Decision
from .records import StopReason as StopReason
from .records import Suspect as Suspect
from .samples.known_labels import corrupt_labels as corrupt_labels
from .stopping.rule import StopRule as StopRule

__version__ = "0.1.0"
