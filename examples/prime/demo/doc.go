// Command demo retells the story of miniswarm on three hosts of a lab, with the real commands and what they really print:
// one overloaded container, a cluster, four replicas, twelve, a node that dies under load, and a balancer whose clients
// notice nothing of it.
//
//	make demo
//	go run ./examples/prime/demo -miniswarm bin/miniswarm
//
// It needs root and Linux, and takes under three minutes. Each step is checked: the first that is not as told ends the
// demo with exit code 1. What was measured is written to out/demo-report.json, also then. The hosts and all that ran on
// them are gone afterwards, also after Ctrl-C.
//
// The numbers mean something on one machine with few cores only because each container has a limit: more containers then
// really have more processor.
package main
