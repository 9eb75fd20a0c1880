# Two commands are all the set-up: `make demo` and `make test`. They need Python >= 3.11, git and make.
# PYTHON is only asked to make the environment: `make test PYTHON=python3.13`.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.stamp
SITE := $(VENV)/.site
MAIN := notebooks/07_staged_distillation.ipynb
EXECUTED := $(patsubst notebooks/%,build/%,$(wildcard notebooks/[0-9]*.ipynb notebooks/solutions/[0-9]*.ipynb))

# ipc: the kernel speaks through files, not open TCP ports. Their path must be absolute: kernel and client work in different
# folders. No timing is recorded, so that outputs stay the same from run to run.
SOCKETS := sockets=$$(mktemp -d) && trap 'rm -rf "$$sockets"' EXIT
EXECUTE := $(VENV)/bin/jupyter nbconvert --to notebook --execute \
	--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=-1 \
	--ExecutePreprocessor.store_widget_state=False \
	--KernelManager.transport=ipc --KernelManager.ip="$$sockets/kernel"

# Spinning threads collapse as soon as anything else runs.
export OMP_WAIT_POLICY ?= PASSIVE
# A kernel installed for the user must not stand in for ours.
export JUPYTER_PREFER_ENV_PATH := 1
# Nobody moves a slider while a notebook is executed: the mask laboratory leaves its pictures instead of a dead widget.
export DFMSD_STATIC := 1

.PHONY: FORCE help demo test notebooks bench site lint clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1|/' | column -t -s '|' 2>/dev/null \
		|| grep -E '^[a-z]+:.*## ' Makefile

demo: $(STAMP) ## run the main job at quick scale (8 to 11 minutes on two cores), show its table
	@mkdir -p build && rm -rf build/demo
	@echo "make demo: executing $(MAIN) at DFMSD_SCALE=$${DFMSD_SCALE:-quick}"
	@$(SOCKETS) && DFMSD_SCALE=$${DFMSD_SCALE:-quick} $(EXECUTE) --output-dir build $(MAIN)
	@echo; if [ -f build/demo/table.md ]; then cat build/demo/table.md; \
		else echo "make demo: $(MAIN) wrote no build/demo/table.md"; exit 1; fi
	@echo; echo "The executed notebook   build/$(notdir $(MAIN))"
	@echo "The table               build/demo/table.md"
	@for f in build/demo/*.png; do if [ -f "$$f" ]; then echo "A figure                $$f"; fi; done
	@for f in build/demo/*.safetensors; do if [ -f "$$f" ]; then echo "The distilled student   $$f"; fi; done

test: $(STAMP) ## run the tests (no slow ones: those run with `.venv/bin/python -m pytest -m slow`)
	@echo "make test: $$($(VENV)/bin/python --version) in $(VENV), pinned by constraints.txt; running tests/"
	@$(VENV)/bin/python -m pytest -n 2 --dist worksteal
	@echo "make test: every test in tests/ ran, but for those marked slow or notebook; none failed"

notebooks: $(STAMP) ## execute every notebook and every solution at smoke scale into build/, two at a time
	@test -n "$(EXECUTED)" || { echo "make notebooks: found none in notebooks/"; exit 1; }
	@$(MAKE) --no-print-directory -j 2 $(EXECUTED)
	@echo "make notebooks: $(words $(EXECUTED)) executed into build/, none failed"

build/%.ipynb: notebooks/%.ipynb FORCE
	@echo "make notebooks: $< at DFMSD_SCALE=$${DFMSD_SCALE:-smoke}"
	@mkdir -p $(@D); $(SOCKETS) && DFMSD_SCALE=$${DFMSD_SCALE:-smoke} $(EXECUTE) --output-dir $(@D) $<

FORCE:

bench: $(STAMP) ## measure every ratio of benchmarks/ (16 minutes on two quiet cores), show the table
	@$(VENV)/bin/python benchmarks

site: $(SITE) ## build the website from README, docs and the notebooks' outputs into build/site (a minute)
	@rm -rf build/site
	@$(VENV)/bin/python -m sphinx -q -c docs/site . build/site
	@echo "make site: open build/site/index.html"

lint: $(STAMP) ## check style and formatting, notebooks included
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

clean: ## remove the environment and everything built (not data/)
	rm -rf $(VENV) build .pytest_cache .ruff_cache *.egg-info

# uv when it is there or pip can bring it, else plain pip; every way with the same pins.
define INSTALL
	if uv --version >/dev/null 2>&1; \
		then uv pip install --quiet --python $(VENV)/bin/python -c constraints.txt -e '$(1)'; \
	elif $(VENV)/bin/python -m pip install --quiet uv 2>/dev/null && $(VENV)/bin/uv --version >/dev/null 2>&1; \
		then $(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python -c constraints.txt -e '$(1)'; \
	else echo "uv cannot be had here: installing with pip"; \
		$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '$(1)'; fi
endef

$(SITE): $(STAMP)
	@echo "Installing what the site is built with"
	@$(call INSTALL,.[site])
	@touch $@

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "dfmsd needs Python 3.11 or newer, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)."; \
		echo "Name another one: make $(or $(MAKECMDGOALS),test) PYTHON=python3.13"; exit 1; }
	@echo "Installing into $(VENV) (some minutes and 6 GB the first time)"
	@$(VENV)/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		rm -rf $(VENV); \
		if uv --version >/dev/null 2>&1; \
		then uv venv --quiet --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV); \
		else $(PYTHON) -m venv $(VENV); fi; }
	@$(call INSTALL,.[dev])
	@touch $@
