# `make demo` shows the main job, `make test` runs the tests; both set up what they need. `make demo KEEP=1` leaves a
# daemon running, and `make demo-stop` stops it. `make install` installs the systemd service on a device.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The tested pair. torch==2.13.0 is installed before anything else: an open range would pull the CUDA packages.
TORCH := torch==2.13.0
TORCHVISION := torchvision==0.28.0

# Debian packages of programs that some tests drive; without them these tests are skipped with a message.
PROGRAMS := prometheus chromium rsync strace
SLOW_PROGRAMS := syncthing skopeo docker-registry mender mender-artifact

# A process a core, and the tests of a file in one of them: they share a daemon. The files stay in order: those that take
# long come first. More than 8 gain little and take memory.
PYTEST = $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-stop test slow lint clean programs install uninstall
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/python -m benchmarks.demo $(if $(KEEP),--keep)

demo-stop:
	@[ ! -x $(BIN)/python ] && echo "no demo is running" || $(BIN)/python -m benchmarks.demo.kept

test: $(VENV)/.test programs
	$(PYTEST)

slow: PROGRAMS += $(SLOW_PROGRAMS)
slow: $(VENV)/.test programs
	$(PYTEST) -m slow

lint: $(VENV)/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

# Only in a container: on a machine with systemd, installing Prometheus would also start it.
programs:
	@for program in $(PROGRAMS); do command -v $$program >/dev/null || missing="$$missing $$(echo $$program | sed s/^mender$$/mender-client/)"; done; \
	[ -z "$$missing" ] || [ "$$(id -u)" != 0 ] || [ -d /run/systemd/system ] || ! command -v apt-get >/dev/null || \
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; } \
	  >/dev/null 2>&1 || echo "not installed:$$missing; the tests that need them are skipped"

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.torch:
	@echo "setting up $(VENV) with PyTorch: some minutes, the first time only"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q $(TORCHVISION)
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install -q -e '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install -q -e '.[test]'
	@touch $@

# --- The service. As root: `make install`, then edit /etc/edged/edged.yaml; `make uninstall`, which with PURGE=1 also
# removes the config, the state and the user. With DESTDIR it only installs files, for a package or an image.

# A virtual environment that sees the system's packages, because a Jetson image provides torch.
PREFIX ?= /opt/edged
DESTDIR ?=
# The package to install; on a device without a network, a wheel.
PACKAGE ?= .
# The user edged must be able to run it; it cannot run a python3 in a home folder.
SYSTEM_PYTHON ?= /usr/bin/python3
UNITDIR ?= /usr/local/lib/systemd/system
SYSUSERSDIR ?= /etc/sysusers.d
TMPFILESDIR ?= /etc/tmpfiles.d
# Properties of the device that select the drop-ins; with DESTDIR, set both.
SYSTEMD_VERSION ?= $(shell systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
JETSON ?= $(if $(wildcard /etc/nv_tegra_release),1)
VERSIONED := $(patsubst systemd/dropins/systemd-%.conf,%,$(wildcard systemd/dropins/systemd-*.conf))
DROPINS = $(foreach v,$(VERSIONED),$(shell [ "$(SYSTEMD_VERSION)" -ge $(v) ] && echo systemd-$(v))) $(if $(JETSON),jetson)

install: HOME_OF := $(DESTDIR)$(PREFIX)
install:
	@[ ! -e "$(HOME_OF)" ] || [ -e "$(HOME_OF)/bin/edged" ] || \
		{ echo "make install: $(HOME_OF) is there and no edged; give a folder of its own as PREFIX" >&2; exit 2; }
	$(SYSTEM_PYTHON) -m venv --system-site-packages $(HOME_OF)
	@# venv installs an old setuptools, which would hide the one that the image's torch requires.
	$(HOME_OF)/bin/python -m pip uninstall -q -y setuptools
	$(HOME_OF)/bin/python -m pip install -q $(PACKAGE)
	[ -z "$(DESTDIR)" ] || sed -i "s|$(DESTDIR)||g" $$(grep -lIF "$(DESTDIR)" $(HOME_OF)/pyvenv.cfg $(HOME_OF)/bin/*)
	install -D -m 644 -t $(HOME_OF)/share systemd/dropins/*.conf configs/edged.yaml
	install -d $(DESTDIR)$(UNITDIR)/edged.service.d
	for unit in edged.service edged.socket; do \
		sed "s|/opt/edged/|$(PREFIX)/|" systemd/$$unit > $(DESTDIR)$(UNITDIR)/$$unit || exit 1; done
	for name in $(DROPINS); do \
		install -m 644 systemd/dropins/$$name.conf $(DESTDIR)$(UNITDIR)/edged.service.d || exit 1; done
	install -D -m 644 systemd/edged.sysusers $(DESTDIR)$(SYSUSERSDIR)/edged.conf
	install -D -m 644 systemd/edged.tmpfiles $(DESTDIR)$(TMPFILESDIR)/edged.conf
	[ -e $(DESTDIR)/etc/edged/edged.yaml ] || install -D -m 644 configs/edged.yaml $(DESTDIR)/etc/edged/edged.yaml
	[ -n "$(DESTDIR)" ] || { systemd-sysusers $(SYSUSERSDIR)/edged.conf && \
		systemd-tmpfiles --create $(TMPFILESDIR)/edged.conf && systemctl daemon-reload; }

uninstall: HOME_OF := $(DESTDIR)$(PREFIX)
uninstall:
	@[ ! -e "$(HOME_OF)" ] || [ -e "$(HOME_OF)/bin/edged" ] || \
		{ echo "make uninstall: $(HOME_OF) holds no edged; give the PREFIX of its installation" >&2; exit 2; }
	[ -n "$(DESTDIR)" ] || [ ! -e $(UNITDIR)/edged.service ] || systemctl disable --now edged.service edged.socket
	rm -rf $(HOME_OF) $(DESTDIR)$(UNITDIR)/edged.service $(DESTDIR)$(UNITDIR)/edged.service.d
	rm -f $(DESTDIR)$(UNITDIR)/edged.socket $(DESTDIR)$(SYSUSERSDIR)/edged.conf $(DESTDIR)$(TMPFILESDIR)/edged.conf
	[ -n "$(DESTDIR)" ] || { systemctl daemon-reload; systemctl reset-failed edged.service edged.socket || true; }
ifdef PURGE
	rm -rf $(DESTDIR)/etc/edged $(DESTDIR)/var/lib/edged $(DESTDIR)/var/cache/edged
	[ -n "$(DESTDIR)" ] || ! id -u edged >/dev/null 2>&1 || userdel edged
endif
