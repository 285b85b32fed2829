"""Parameter schema, timing histograms: small tables that others rely on."""

import dataclasses

import numpy as np
import pytest
import yaml

from niaf_impedance import ControllerConfig
from niaf_impedance.controller import ControllerConfigError
from niaf_impedance.parameters import (
    controller_settings,
    node_schema,
    parameter_file_text,
    render_markdown,
    tuning_from,
    tuning_schema,
)
from niaf_impedance.timing import Histogram, LoopTiming
from niaf_impedance.tuning import Tuning


def test_every_parameter_is_described_and_its_default_is_inside_its_range(arm):
    schema = node_schema() + tuning_schema(arm.config)
    names = [spec.name for spec in schema]
    assert len(names) == len(set(names))
    for spec in schema:
        assert spec.description.endswith(".")
        if spec.minimum is not None:
            assert spec.minimum <= spec.default <= spec.maximum
        if spec.choices:
            assert spec.default in spec.choices


def test_one_gain_pair_per_joint_with_the_ranges_of_the_description(arm):
    specs = {spec.name: spec for spec in tuning_schema(arm.config)}
    assert len(specs) == 4 + 2 + 12 + 5 * 7
    assert specs["cartesian.x.stiffness_n_m"].live
    kp = specs["gains.panda_joint3.kp"]
    assert kp.live
    assert (kp.default, kp.maximum) == (
        arm.config.joints[2].kp.default, arm.config.joints[2].kp.maximum)


def test_markdown_lists_every_parameter(arm):
    schema = node_schema() + tuning_schema(arm.config)
    text = render_markdown(schema)
    for spec in schema:
        assert f"`{spec.name}`" in text


def test_tuning_parameters_give_the_tuning_of_the_description(arm):
    values = {spec.name: spec.default for spec in tuning_schema(arm.config)}
    assert tuning_from(values, arm.config) == Tuning.of(arm.config)
    values["gains.panda_joint3.kd"] = 7.0
    values["stiffness_scale"] = 0.5
    changed = tuning_from(values, arm.config)
    assert (changed.kd[2], changed.stiffness_scale) == (7.0, 0.5)


def test_a_saved_parameter_file_reads_back_exactly(arm):
    values = {spec.name: spec.default for spec in tuning_schema(arm.config)}
    values["gains.panda_joint1.kp"] = 1 / 3
    text = parameter_file_text("impedance", values)
    assert yaml.safe_load(text) == {"/**/impedance": {"ros__parameters": values}}


def test_schema_defaults_give_the_default_configuration():
    values = {spec.name: spec.default for spec in node_schema()}
    assert controller_settings(values) == ControllerConfig()


def test_each_controller_parameter_reaches_the_controller():
    for spec in node_schema():
        if spec.name in {field.name for field in dataclasses.fields(ControllerConfig)}:
            value = {"feedforward": "gravity", "damp_gravity": False}.get(spec.name)
            if value is None:
                value = spec.maximum if spec.default != spec.maximum else spec.minimum
            changed = controller_settings({spec.name: value})
            assert getattr(changed, spec.name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [("blend_s", 0.0), ("brake_s", float("nan")), ("feedforward", "magic"),
     ("state_timeout_s", -1.0), ("admission_samples", 2)],
)
def test_settings_that_make_no_sense_are_refused_by_name(name, value):
    with pytest.raises(ControllerConfigError, match=name):
        ControllerConfig(**{name: value})


def test_histogram_percentiles_agree_with_numpy():
    rng = np.random.default_rng(0)
    values = rng.exponential(3e-4, 5000)
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    p = histogram.percentiles()
    assert p.count == 5000
    assert p.max_s == values.max()
    assert p.p50_s == pytest.approx(np.percentile(values, 50), abs=2e-6)
    assert p.p99_s == pytest.approx(np.percentile(values, 99), rel=0.01)
    histogram.clear()
    assert histogram.percentiles().count == 0


def test_missed_ticks_are_counted_by_the_stamps():
    timing = LoopTiming(0.001)
    for i in (0, 1, 2, 5, 6):
        timing.begin(10.0 + 0.001 * i, 0.001 * i, 0.0002, 0.0001)
        timing.end(10.0 + 0.001 * i + 5e-5)
    assert timing.missed == 2
    assert timing.lateness.percentiles().max_s == pytest.approx(0.0001)
    assert timing.last_execution_s == pytest.approx(5e-5)
    assert timing.command_age.percentiles().p50_s == pytest.approx(0.00025, abs=1e-6)
