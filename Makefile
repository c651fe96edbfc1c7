# Bare "make" lists the targets.

GO       ?= go
BIN      := bin/synapsefs
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS  := -s -w -X github.com/synapsefs/synapsefs/internal/version.set=$(VERSION)
TREE     ?= $(wildcard ../shared/corpus/synapse-large.tar.gz)
TESTARGS ?=
PKGS     ?= ./...

GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
PROTOC_GEN_GO      := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
PROTOC_GEN_GO_GRPC := google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2

.DEFAULT_GOAL := help
.PHONY: help setup build install image manifests demo test test-full torn-full handover-full events-full csi-full e2e-k8s suites-full xfstests pjdfstest sim race bench lint generate check clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what the tests and the demo need (as root), or say what is missing
	@scripts/setup

build: ## build bin/synapsefs
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/synapsefs

# mount(8) looks for its helpers in /sbin alone.
PREFIX ?= /usr/local
install: build ## install synapsefs, and for mount -t synapsefs and /etc/fstab its helper; PREFIX=..., DESTDIR=...
	install -D -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/synapsefs
	install -d $(DESTDIR)/sbin
	ln -sf $(PREFIX)/bin/synapsefs $(DESTDIR)/sbin/mount.synapsefs
	ln -sf $(PREFIX)/bin/synapsefs $(DESTDIR)/sbin/mount.fuse.synapsefs

# A module of its own: what it needs is none of the program's.
IMAGE ?= synapsefs:dev
ARCH  ?= $(shell $(GO) env GOARCH)
image: ## bin/synapsefs-image.tar, an OCI archive with the static program, without a container engine; IMAGE=name, ARCH=arm64
	CGO_ENABLED=0 GOOS=linux GOARCH=$(ARCH) $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/image/synapsefs ./cmd/synapsefs
	cd deploy && $(GO) run ./image --binary ../bin/image/synapsefs --arch $(ARCH) --tag $(IMAGE) --out ../bin/synapsefs-image.tar

manifests: ## deploy/manifests from deploy/chart
	cd deploy && $(GO) run ./render > manifests/synapsefs.yaml

demo: setup build ## three nodes on this host; KEEP=1 leaves them running, TREE=... names the tree
	@$(BIN) demo $(if $(TREE),--tree $(TREE)) $(if $(KEEP),--keep)

# -count=1: internal/e2e runs a binary that Go's test cache does not know of.
test: setup ## all tests, real mounts included; PKGS=./store/... for some
	$(GO) vet $(PKGS)
	$(GO) test -count=1 -timeout 30m $(TESTARGS) $(PKGS)
	cd deploy && $(GO) vet ./... && $(GO) test ./...

test-full: test torn-full ## make test, and the random programs on two mounts for a minute
	$(GO) test -count=1 -run TestP4RandomPrograms ./fusefs -stress.time=60s

torn-full: setup ## 10,000 remote replacements of files that are being read
	$(GO) test -count=1 -timeout 60m -run TestP2TornReads -v ./internal/e2e -torn.replacements=10000

handover-full: setup ## 1,000 kills of the daemon under a workload, 40 upgrades with 100,000 files: half an hour
	$(GO) test -count=1 -timeout 0 -v -run 'TestP9(Kills|Upgrades)' ./internal/e2e -kills=1000 -upgrades=40 -upgrade.files=100000

events-full: setup ## the tests of inotify events at full length, minutes
	$(GO) test -count=1 -timeout 30m -v -run 'TestP10' ./internal/e2e -events.full

csi-full: setup ## 200 volumes of a CSI client on three nodes, made, used, moved and deleted in parallel: minutes
	$(GO) test -count=1 -timeout 60m -v -run 'TestCSIVolumesMove' ./internal/e2e -csi.volumes=200 -csi.parallel=32

# Modules of its own, cached outside of the repository by their go.sum: the first
# time, building Kubernetes takes ten minutes on two cores.
e2e-k8s: setup image ## the driver on a real Kubernetes, two nodes on this host, as root; TESTARGS="-run Name"
	@scripts/setup k8s
	cd internal/e2e/k8s && export CGO_ENABLED=0 && $(GO) vet ./... && $(GO) test -count=1 -timeout 30m -v $(TESTARGS) .

suites-full: setup ## the suites of others at full length, with and without faults of the peers: an hour
	$(GO) test -count=1 -timeout 0 -v -run 'Suites' ./internal/e2e -suites.full

# SUITE is a checkout of github.com/kdave/xfstests, which is not part of this.
xfstests: build ## xfstests on two volumes; SUITE=checkout, TESTS="001 013": some only
	@scripts/setup xfstests
	@scripts/xfstests $(SUITE) $(TESTS)

# Seeds from FIRST on; a failing one is made small and printed as one line to run.
SEEDS ?= 1000000
FIRST ?= 1
sim: ## many seeds of the simulator; SEEDS=..., FIRST=...
	$(GO) test -count=1 -timeout 0 -run 'TestP4Seeds$$' -v ./internal/sim -sim.seeds=$(SEEDS) -sim.first=$(FIRST)

# The suite is not part of this repository: SUITE names a checkout of pjd/pjdfstest.
pjdfstest: build ## the POSIX suite pjdfstest on a volume of its own; SUITE=path, TESTS="chmod rename/00.t"
	@scripts/setup pjdfstest
	@scripts/pjdfstest "$(SUITE)" $(TESTS)

race: setup ## all tests under the race detector
	$(GO) test -race -timeout 30m $(TESTARGS) $(PKGS)

bench: setup ## the benchmarks, real mounts included
	$(GO) test -run '^$$' -bench . -benchmem -timeout 30m $(TESTARGS) $(PKGS)

lint: ## the linters of .golangci.yml (built on first use: some minutes)
	$(GO) run $(GOLANGCI) run $(PKGS)

generate: ## the code generated from internal/wire/*.proto (needs protoc)
	GOBIN=$(CURDIR)/bin/tools $(GO) install $(PROTOC_GEN_GO)
	GOBIN=$(CURDIR)/bin/tools $(GO) install $(PROTOC_GEN_GO_GRPC)
	cd internal/wire && PATH=$(CURDIR)/bin/tools:$$PATH protoc \
		--go_out=. --go_opt=paths=source_relative \
		--go-grpc_out=. --go-grpc_opt=paths=source_relative *.proto

check: ## what must be clean before a commit: format, vet, tests, linters
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -d $$(git ls-files '*.go'); exit 1; }
	$(MAKE) test
	$(MAKE) lint

clean: ## remove what make built
	rm -rf bin
