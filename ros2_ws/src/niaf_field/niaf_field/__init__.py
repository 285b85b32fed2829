"""The action field: a modulated sine network as a function of time. numpy and numba; no ROS."""

from niaf_field.blend import blend_jets, smoothstep5
from niaf_field.channels import (
    Channel,
    anchor_from_state,
    channel_index,
    check_channels,
    relative_mask,
)
from niaf_field.codec import (
    FieldLimits,
    FieldMessage,
    RefusalReason,
    check_field,
    diagnose_field,
    field_from_message,
    from_message,
    make_field_message,
    shift_field,
    stamp_from_time,
    time_from_stamp,
    to_message,
)
from niaf_field.errors import (
    ChannelError,
    CodecError,
    FieldError,
    ModulationError,
    PriorError,
    SplineError,
)
from niaf_field.fold import FoldedField, aligned_empty, fold, fold_prior, folded_size
from niaf_field.jets import (
    MAX_ORDER,
    field_jets,
    field_jets_many,
    siren_jets,
    siren_work_size,
    time_scale_jets,
)
from niaf_field.jets_reference import reference_jets, siren_batch
from niaf_field.modulation import ModulationLayout
from niaf_field.prior import Prior, initial_prior, load_prior, save_prior
from niaf_field.reference import (
    ActionField,
    Reference,
    SplineReference,
    hold_reference,
    spline_reference,
    warm_up_kernels,
)
from niaf_field.spline import (
    quintic_segment,
    spline_jets,
    spline_jets_many,
    spline_through,
)
from niaf_field.timemap import query_grid, tau_of_time, time_grid, time_of_tau

__all__ = [
    "MAX_ORDER",
    "ActionField",
    "Channel",
    "ChannelError",
    "CodecError",
    "FieldError",
    "FieldLimits",
    "FieldMessage",
    "FoldedField",
    "ModulationError",
    "ModulationLayout",
    "Prior",
    "PriorError",
    "Reference",
    "RefusalReason",
    "SplineError",
    "SplineReference",
    "aligned_empty",
    "anchor_from_state",
    "blend_jets",
    "channel_index",
    "check_channels",
    "check_field",
    "diagnose_field",
    "field_from_message",
    "field_jets",
    "field_jets_many",
    "fold",
    "fold_prior",
    "folded_size",
    "from_message",
    "hold_reference",
    "initial_prior",
    "load_prior",
    "make_field_message",
    "query_grid",
    "quintic_segment",
    "reference_jets",
    "relative_mask",
    "save_prior",
    "shift_field",
    "siren_batch",
    "siren_jets",
    "siren_work_size",
    "smoothstep5",
    "spline_jets",
    "spline_jets_many",
    "spline_reference",
    "spline_through",
    "stamp_from_time",
    "tau_of_time",
    "time_from_stamp",
    "time_grid",
    "time_of_tau",
    "time_scale_jets",
    "to_message",
    "warm_up_kernels",
]
