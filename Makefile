PYTHON ?= python3
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile

help:
	@echo "make demo    set up PyTorch and the engine in .venv, train the MNIST example"
	@echo "make test    set up PyTorch and TensorFlow in .venv, run the tests (ARGS=... for pytest)"
	@echo "make setup   only what 'make demo' sets up"
	@echo "make containers  build the image, kill containers while a job goes on (needs Docker or Podman)"
	@echo "make clean   remove .venv, runs and build artefacts"
	@echo "PYTHON=python3.12 chooses the interpreter. The first set-up compiles Horovod and takes minutes."

setup:
	@PYTHON=$(PYTHON) scripts/setup.sh demo

demo: setup
	.venv/bin/hvtrain run examples/mnist/config.yaml

test:
	@PYTHON=$(PYTHON) scripts/setup.sh test
	$(PYTEST) tests/unit tests/conformance $(ARGS)
	$(PYTEST) tests/integration tests/faults $(ARGS)

containers:
	docker/try.py

clean:
	rm -rf .venv runs build dist *.egg-info .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup demo test containers clean
