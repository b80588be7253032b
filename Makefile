# Two commands set everything up: `make demo` and `make test`. Each target is one or two commands.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
export NO_ALBUMENTATIONS_UPDATE = 1

.PHONY: demo test app lab lint check docs-check notebooks-test pytest slow hooks pages clean

demo: $(VENV)/.runtime
	$(BIN)/snakecls demo

test: $(VENV)/.dev browser
	$(MAKE) notebooks-test pytest

notebooks-test: $(VENV)/.dev
	dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && TMPDIR=$$dir OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2

pytest: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2 --dist loadfile

slow: $(VENV)/.dev
	grep -rlE --include='*.ipynb' --exclude-dir=.ipynb_checkpoints '#\| *slow' nbs | xargs -rn 1 $(BIN)/nbdev_test --flags slow --n_workers 1 --path

app: $(VENV)/.runtime
	$(BIN)/python app.py

lab: $(VENV)/.dev
	$(BIN)/jupyter lab nbs

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

check: $(VENV)/.dev
	$(BIN)/python tools/check_generated.py

pages: $(VENV)/.dev
	$(BIN)/python tools/make_pages.py
	$(BIN)/python tools/make_readme.py

hooks: $(VENV)/.dev
	$(BIN)/pre-commit install

docs-check: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python tools/check_docs.py

# The environments: `demo` and `app` need the project alone, the others the `dev` extra too.
$(VENV)/.runtime: settings.ini setup.py
	$(PYTHON) tools/make_env.py $(VENV)
	touch $@

$(VENV)/.dev: settings.ini setup.py
	$(PYTHON) tools/make_env.py $(VENV) --dev
	$(BIN)/python tools/install_hooks.py
	touch $@ $(VENV)/.runtime

.PHONY: browser
browser: $(VENV)/.dev
	$(BIN)/python tools/find_browser.py --install

clean:
	rm -rf $(VENV) build dist *.egg-info
