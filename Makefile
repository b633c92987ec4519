# The entry points; `make help` lists them. CI calls the same targets.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BUILD    = CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)"

.DEFAULT_GOAL := build
.PHONY: build test test-short oracle sim fuzz demo lint vuln bench clean help

build: ## the one static binary, bin/miniswarm
	$(BUILD) -o bin/miniswarm ./cmd/miniswarm

test: ## everything, on real hosts, with the race detector (root; installs what is missing)
	scripts/setup.sh test
	go vet ./...
	CGO_ENABLED=1 MINISWARM_LAB=1 go test -race -timeout 60m ./...
	go test ./sim
	cd scheduler/swarmkit && go vet . && go test -parallel 100 .

test-short: ## what needs neither root nor engines
	go vet ./...
	go test -short ./...

oracle: ## all scripts of lab/oracle against a real Docker Swarm, and the scheduler against swarmkit's (root; installs what is missing)
	scripts/setup.sh test
	MINISWARM_LAB=1 go test -timeout 60m -parallel 6 -v ./lab/oracle -run TestScripts -all
	cd scheduler/swarmkit && go test -parallel 100 -seeds 10000 .

SEEDS ?= 1000
TIMES ?= 1
sim: ## SEEDS=n seeds of the simulator, or one SEED=n with its trace (TIMES=n of it, LOGS=1 with the daemons' logs, MEMBERS=1 with managers that change)
	go test -count=1 -timeout 600m ./sim -run TestSeeds $(if $(SEED),-v -seed $(SEED) -times $(TIMES) $(if $(LOGS),-logs),-seeds $(SEEDS)) $(if $(MEMBERS),-members)

FUZZTIME ?= 30s
fuzz: ## every fuzz test of the repository for FUZZTIME
	scripts/fuzz.sh $(FUZZTIME)

demo: ## the whole story on three hosts, under three minutes (root; installs what is missing)
	scripts/setup.sh demo
	@$(MAKE) --no-print-directory build
	CGO_ENABLED=0 go build -trimpath -o bin/miniswarm-demo ./examples/prime/demo
	bin/miniswarm-demo

lint: ## gofmt, vet, staticcheck, shellcheck, known vulnerabilities
	scripts/setup.sh lint
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "gofmt -w $$unformatted"; exit 1; fi
	go vet ./...
	go tool staticcheck ./...
	shellcheck scripts/*.sh lab/*.sh .ci/run
	@$(MAKE) --no-print-directory vuln

vuln: ## known vulnerabilities in what is linked; says so where the database is out of reach
	@go tool govulncheck ./... || { code=$$?; [ $$code -ne 3 ] && echo "govulncheck could not ask its database: nothing checked"; [ $$code -ne 3 ]; }

bench: ## the bars of docs/benchmarks.md, then the benchmarks of the packages (root; installs what is missing)
	scripts/setup.sh bench
	CGO_ENABLED=0 go build -trimpath -o bin/benchmarks ./benchmarks
	bin/benchmarks million
	bin/benchmarks scale
	bin/benchmarks writes
	bin/benchmarks restart
	bin/benchmarks churn
	bin/benchmarks cluster
	bin/benchmarks idle
	go test -run '^$$' -bench Paths -benchtime 5x ./ingress
	go test -run '^$$' -bench EndpointChange ./ingress
	go test -run '^$$' -bench Zones -benchtime 10x ./ingress
	go test -run '^$$' -bench . -benchmem -timeout 60m ./scheduler ./orchestrator ./raftstore ./ingress/lb

clean: ## removes what was built
	rm -rf bin out

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14
