"""Every error that mmlens raises on purpose.

Each class names one kind of culprit, so callers can catch exactly what they can handle. Messages say what
was given, what was expected, and what to do about it.
"""


class MMLensError(Exception):
    """Base class: everything mmlens raises on purpose is one of these."""


class InputError(MMLensError, ValueError):
    """The prompt, image or tensors given to a model do not fit together."""


class ImageError(InputError):
    """An image file or array is unreadable, hostile or ambiguous."""


class MissingPixels(InputError):
    """Image tokens are present but no pixels came with them."""


class UnexpectedPixels(InputError):
    """Pixels came without the image tokens that would read them, or in the wrong number."""


class RegionError(InputError):
    """A box or mask does not lie in the image it names, or covers nothing."""


class AnswerError(InputError):
    """An answer or foil is missing, unknown to the vocabulary, or more than one token."""


class SelectorError(InputError):
    """A position, head or layer selector is malformed or out of range."""


class UnknownGroup(SelectorError):
    """A position selector names no role or group of this prompt."""


class EmptyGroup(SelectorError):
    """A position selector is known but selects no position."""


class UnknownHook(InputError):
    """A hook name matches no hook point of the model."""


class ReadOnlyHook(MMLensError, RuntimeError):
    """A hook point that cannot change the computation was written to."""


class ShapeError(InputError):
    """An array or mask has the wrong shape or dtype."""


class NonFiniteError(MMLensError, ArithmeticError):
    """NaN or infinity appeared in weights, activations, logits or a metric."""


class ConfigError(MMLensError, ValueError):
    """A configuration value is missing, contradictory or unsupported."""


class UnsupportedArchitecture(ConfigError):
    """The checkpoint belongs to a model family that mmlens does not know."""


class CheckpointError(MMLensError, ValueError):
    """A checkpoint has missing, extra, misshapen, corrupt or non-finite tensors, or cannot be found."""


class InterventionError(MMLensError, ValueError):
    """An intervention is malformed or does not fit the model it is applied to."""


class InterventionDidNothing(InterventionError):
    """An intervention matched nothing, or changed no element."""


class MetricError(MMLensError, ValueError):
    """A metric returned the wrong shape or cannot be computed for these inputs."""


class DesignError(MMLensError, ValueError):
    """A set of head masks cannot answer the question asked of it (too few, constant, misshapen)."""


class EngineNotExact(MMLensError, RuntimeError):
    """The shared-prefix engine would not be exact for this model, prompt or intervention."""


class MemoryShortage(MMLensError, MemoryError):
    """Memory does not suffice for the smallest piece of work."""


class ResultError(MMLensError, ValueError):
    """A saved result is missing, corrupt, of another kind, or cannot be written."""


class PlacementError(MMLensError, ValueError):
    """A device map names parts that a model does not have, leaves parts out, or asks for devices that are not there."""


class QuantisedWeights(MMLensError, RuntimeError):
    """Weights are held in 8 or 4 bits, where their numbers are needed."""


class SweepError(MMLensError, RuntimeError):
    """A sweep cannot start, go on or be read back: its folder, its options or its workers."""


class DiskFull(SweepError):
    """A sweep's folder takes no more bytes; everything written before is whole."""
