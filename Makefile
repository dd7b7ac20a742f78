GOLANGCI_LINT_VERSION ?= v2.5.0
GOLANGCI_LINT         ?= go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
TEST_FLAGS            ?= -timeout 10m
FUZZ_TIME             ?= 30s
CHAOS_SECONDS         ?= 600
NATS_SECONDS          ?= 60
AGAINST               ?= HEAD
AGAINST_FLAGS         ?= -rounds 5 -scale 0.1
AGAINST_BENCHMARKS    ?= drain latency memory source stamp

.DEFAULT_GOAL := help
.PHONY: help test matrix monitoring nats cli least-rights race fuzz vet lint fmt examples integration ui screenshots peers regress ci bench bench-drain bench-latency bench-memory bench-source bench-asof bench-stamp bench-revert bench-watch bench-tables bench-size bench-against chaos

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: ## run all tests; they start a PostgreSQL of their own
	go test $(TEST_FLAGS) ./...

least-rights: ## run all tests with histories whose writers own nothing
	AUDIT_TEST_LEAST_RIGHTS=1 go test $(TEST_FLAGS) ./...

matrix: ## run a chosen part of the tests on PostgreSQL 14, 16, 17 and 18; .ci/matrix -whole runs all
	.ci/matrix

race: ## run all tests with the race detector
	go test -race $(TEST_FLAGS) ./...

fuzz: ## run every fuzz test for FUZZ_TIME
	@set -e; for package in $$(go list ./...); do \
		for name in $$(go test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
			echo "== $$package $$name"; \
			go test -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZ_TIME) $$package; \
		done; \
	done

chaos: ## strike at clusters, networks and programs for CHAOS_SECONDS, and compare history with a journal
	AUDIT_TEST_CHAOS_SECONDS=$(CHAOS_SECONDS) go test -count=1 -v -timeout 60m -run Chaos ./internal/chaos

vet: ## run go vet
	go vet ./...

lint: ## run golangci-lint
	$(GOLANGCI_LINT) run ./...

fmt: ## format the code
	$(GOLANGCI_LINT) fmt ./...

examples: ## run the example programs
	go run ./examples/todo
	go run ./examples/timetravel
	go run ./examples/sqlc
	go run ./examples/worker
	@echo 'examples/ui serves until it is stopped: go run ./examples/ui'
	cd examples/gorm && go run .

integration: ## test with GORM, ent, bun, sqlx, lib/pq, River, chi, gin, echo, gRPC and Connect
	cd internal/integration && go vet ./... && go test $(TEST_FLAGS) ./...
	cd examples/gorm && go vet ./... && go test $(TEST_FLAGS) ./...
	@set -e; for module in auditgorm auditriver auditgrpc auditconnect auditgin auditecho auditecho4; do \
		echo "== $$module"; (cd $$module && go vet ./... && go test $(TEST_FLAGS) ./...); \
	done

nats: ## kill sinks and brokers for NATS_SECONDS, and compare the stream with the history
	cd auditnats && go vet ./... && AUDIT_TEST_NATS_SECONDS=$(NATS_SECONDS) go test -count=1 -v $(TEST_FLAGS) -run Killed .

monitoring: ## make the alert rules and the dashboard from the list of the metrics, and test them
	cd internal/monitoring && go vet ./... && go run . && go test $(TEST_FLAGS) ./...

cli: ## test the command hindsight
	cd cmd/hindsight && go vet ./... && go test $(TEST_FLAGS) ./...

ui: ## test the pages of auditui in a real Chromium
	cd internal/uitest && go vet ./... && go test $(TEST_FLAGS) ./...

screenshots: ## make the pictures of docs/images anew
	cd internal/uitest && AUDIT_UI_SCREENSHOTS=$(CURDIR)/docs/images go test -count=1 $(TEST_FLAGS) -run LookOfEveryPage ./...

peers: ## run the tests of pgx, pgxpool, stdlib, lib/pq and sqlx themselves, bare and through the wrappers
	cd internal/integration && go run ./peers

# PostgreSQL's own tests come with its source only, from it or from Debian. They take the
# server's development package and a C compiler, too.
REGRESS_VERSION ?= 15.18
REGRESS_SOURCE  ?=
regress: ## PostgreSQL's own regression and isolation tests under capture (REGRESS_SOURCE: an unpacked source tree)
	@set -e; source='$(REGRESS_SOURCE)'; major=$(firstword $(subst ., ,$(REGRESS_VERSION))); \
	if [ -z "$$source" ]; then \
		dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; chmod 755 "$$dir"; \
		curl -fsSL -o "$$dir/source.tar.bz2" https://ftp.postgresql.org/pub/source/v$(REGRESS_VERSION)/postgresql-$(REGRESS_VERSION).tar.bz2 || \
		curl -fsSL -o "$$dir/source.tar.bz2" http://deb.debian.org/debian/pool/main/p/postgresql-$$major/postgresql-$${major}_$(REGRESS_VERSION).orig.tar.bz2; \
		tar -xjf "$$dir/source.tar.bz2" -C "$$dir"; source=$$dir/postgresql-$(REGRESS_VERSION); \
	fi; \
	AUDIT_TEST_REGRESS_SOURCE="$$source" go test -timeout 90m -run TestRegression -v .

ci: ## what the build machine runs
	.ci/run

bench: bench-drain bench-latency bench-memory bench-source bench-stamp bench-asof ## run all benchmarks

bench-drain: ## drain a backlog: against a bare COPY, and against decoding alone
	go run ./internal/bench drain

bench-latency: ## from commit to queryable, at 500 transactions a second
	go run ./internal/bench latency

bench-memory: ## peak memory while a transaction of a million rows is drained
	go run ./internal/bench memory

bench-source: ## what capture costs the source, against none and against triggers
	go run ./internal/bench source

bench-stamp: ## what a context costs the writes it goes with, through pgx and database/sql
	go run ./internal/bench stamp

bench-asof: ## rows, tables and views as of a moment, in a history of 5,000,000 changes
	go test -run '^$$' -bench AsOf -benchtime 1x -timeout 60m .

bench-revert: ## undo of 100,000 rows against the UPDATE by hand, and of a request of five
	go run ./internal/bench revert

bench-watch: ## from commit to the watch it is for: one watch, and 1,000 with different filters
	go run ./internal/bench watch

bench-tables: ## what it costs to watch over 10 tables, and over 10,000
	go run ./internal/bench tables

bench-size: ## what a change takes in the history and in the WAL, in bytes
	go run ./internal/bench size

bench-against: ## benchmarks of commit AGAINST and of this tree, in turns, and the ratios
	go run ./internal/bench/against $(AGAINST_FLAGS) $(AGAINST) $(AGAINST_BENCHMARKS)
