# Two commands on a fresh machine: `make demo` paints a picture, `make test` passes the tests.
# On a machine without a GPU, PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" saves gigabytes.
VENV ?= .venv
PIP_ARGS ?=
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test lint clean

$(STAMP): pyproject.toml
	test -x $(PY) || python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet $(PIP_ARGS) "torch>=2.6,<2.14"
	$(PY) -m pip install --quiet $(PIP_ARGS) -e ".[dev]"
	$(PY) -m pip install --quiet --no-deps "insightface>=2.1"  # tests compare with it; its own opencv-python would replace the headless one
	touch $@

demo: $(STAMP)
	mkdir -p out
	$(VENV)/bin/selfsame generate --face examples/ada.png --prompt "a watercolour of a person laughing on a beach" --out out/ada-watercolour.png

test: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(PY)

clean:
	rm -rf $(VENV) out
