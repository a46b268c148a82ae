# The commands of the project. `make help` lists them.

PREFIX  ?= /usr/local
DESTDIR ?=
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GO      ?= go
export CGO_ENABLED = 0

.PHONY: help build install uninstall setup generate check test checks most twice demo bench clean

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

build: ## build bin/isle, bin/isle-init and bin/isle-runsc
	$(GO) build -trimpath -ldflags '-s -w -X main.linked=$(VERSION)' -o bin/isle ./cmd/isle
	$(GO) build -trimpath -ldflags '-s -w' -o bin/isle-init ./cmd/isle-init
	$(GO) build -trimpath -ldflags '-s -w' -o bin/isle-runsc ./cmd/isle-runsc

install: build ## install into DESTDIR and PREFIX, with a systemd unit
	install -D -m 0755 bin/isle $(DESTDIR)$(PREFIX)/bin/isle
	install -D -m 0755 bin/isle-init $(DESTDIR)$(PREFIX)/libexec/isle/isle-init
	install -D -m 0755 bin/isle-runsc $(DESTDIR)$(PREFIX)/libexec/isle/isle-runsc
	install -d -m 0755 $(DESTDIR)/etc/systemd/system
	sed 's#@PREFIX@#$(PREFIX)#g' packaging/isle.service > $(DESTDIR)/etc/systemd/system/isle.service
	install -d -m 0700 $(DESTDIR)/var/lib/isle
	@[ -n '$(DESTDIR)' ] || getent group isle >/dev/null || groupadd --system isle
	@[ -n '$(DESTDIR)' ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
	@echo 'installed; start it with: systemctl enable --now isle'

uninstall: ## remove what install installed; state stays
	rm -rf $(DESTDIR)$(PREFIX)/bin/isle $(DESTDIR)$(PREFIX)/libexec/isle $(DESTDIR)/etc/systemd/system/isle.service

setup: ## install the Debian packages that are missing
	@scripts/setup.sh

generate: ## generate Go from the API's definition
	@scripts/setup.sh protobuf-compiler libprotobuf-dev
	scripts/generate.sh .

check: ## format, vet, staticcheck, layers, generated code, links, unit tests
	@scripts/setup.sh protobuf-compiler libprotobuf-dev
	scripts/check.sh

test: setup build ## everything, with real parts; needs root
	@scripts/setup.sh runc btrfs-progs erofs-utils qemu-system-x86 buildah docker-registry protobuf-compiler libprotobuf-dev openssl bzip2 xz-utils postgresql python3-psycopg python3-psycopg2 libpostgresql-jdbc-java openjdk-17-jdk-headless wrk
	@command -v npm >/dev/null || scripts/setup.sh npm
	@$(MAKE) --no-print-directory -j checks most twice

# What test runs is three rows side by side, one of them of as many packages at once
# as there are processors: more would only wait for each other. In the third are those that run for
# each class of isolation; the attacks on the machine may not meet each other.
# Vetting is the first row's; without tables for a debugger programs link sooner.
GOTEST = $(GO) test -vet=off -ldflags='-s -w' -timeout 40m
checks:
	scripts/check.sh
most:
	$(GOTEST) -p $$(nproc) $$($(GO) list ./... | grep -v '^isle/test/escape$$')
twice:
	$(GOTEST) ./test/escape
	ISLE_TEST_ISOLATION=gvisor $(GOTEST) ./test/escape
	ISLE_TEST_ISOLATION=gvisor $(GOTEST) -run 'GoSpiffe|TwoServices|NoServiceGets|EndsWithIts' ./test/identity
	ISLE_TEST_ISOLATION=gvisor $(GOTEST) -run UnchangedClients ./test/inspect
	cd test/follow && $(GOTEST) ./...

demo: setup build ## bring up examples/shop and show what it means
	@scripts/setup.sh postgresql openssl git
	scripts/demo.sh

bench: setup build ## measure, next to peers, in one run
	@scripts/setup.sh bubblewrap runc postgresql pgbouncer nginx-light wrk
	$(GO) run ./bench

clean: ## remove what was built
	rm -rf bin
