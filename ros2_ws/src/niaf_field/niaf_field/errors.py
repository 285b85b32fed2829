"""Every error raised on purpose here; each message names the thing, its value and a remedy."""


class FieldError(ValueError):
    """Base of all errors of niaf_field."""


class ChannelError(FieldError):
    """A channel table is malformed."""


class PriorError(FieldError):
    """A prior, or the file that holds one, cannot be used."""


class ModulationError(FieldError):
    """gamma, beta or anchor do not fit the prior."""


class SplineError(FieldError):
    """Knots or boundary conditions do not describe a spline."""


class CodecError(FieldError):
    """An object is not an ActionField message, or a value does not fit in one."""
