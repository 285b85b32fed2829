# One line each; the work is in scripts/ and in the packages. "make help" lists the targets.
# Everything sets up what is missing first. Settings: PYTHON=, TORCH_ARGS=, PIP_ARGS=, NIAF_VENV= (scripts/setup.sh).
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench bench-controller data train policy eval clean distclean
export PYTHON TORCH_ARGS PIP_ARGS NIAF_ROS NIAF_VENV EPISODES SEED VIEWER CHECKPOINT CONFIG
RUN := scripts/run.sh

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 26

setup:  ## environment, requirements, workspace
	@scripts/setup.sh

demo:  ## episodes over the running ROS graph: EPISODES=6 SEED=0 VIEWER=1 CHECKPOINT= ARGS=
	@NIAF_STEP=demo $(RUN) scripts/demo.sh $(ARGS)

test:  ## ruff, mypy, unit and system tests: ARGS= goes to pytest
	@NIAF_STEP=test $(RUN) scripts/test.sh $(ARGS)

lint:  ## ruff and mypy alone
	@NIAF_STEP=lint $(RUN) scripts/lint.sh

bench:  ## every published figure, into out/bench
	@NIAF_STEP=bench $(RUN) scripts/bench.sh $(ARGS)

bench-controller:  ## the control loop's figures alone
	@NIAF_STEP=bench $(RUN) scripts/bench.sh controller $(ARGS)

data:  ## expert episodes in the simulator, into data/demo: EPISODES=600 SEED=0 ARGS=
	@NIAF_STEP=data $(RUN) scripts/data.sh $(ARGS)

train:  ## train the shipped checkpoint's configuration: CONFIG= ARGS="section.name=value"
	@NIAF_STEP=train $(RUN) scripts/train.sh $(ARGS)

policy:  ## the shipped checkpoint from nothing: data, training, corrections, evaluation (2.5 h)
	@NIAF_STEP=policy $(RUN) scripts/policy.sh

eval:  ## closed loop in the lock-step environment: EPISODES=120 CHECKPOINT= ARGS=
	@NIAF_STEP=eval $(RUN) scripts/eval.sh $(ARGS)

clean:  ## build folders, caches, results; keeps the environment
	@scripts/clean.sh

distclean:  ## clean, and the environment too
	@scripts/clean.sh --all
