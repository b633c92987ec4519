// Package e2e holds the tests of the whole: real hosts, real engines, the real command. They tell the story that
// miniswarm was made for, and every bad day that it promises to survive.
//
// They run with MINISWARM_LAB=1 (make test), as root on Linux, and are skipped otherwise. What the machine lacks then
// fails them. The tests of one file share a lab of four hosts: vm1, a manager, vm2 and vm3, its workers, and vm4, which is
// part of no cluster and which some tests have join. Every test hands the lab back as it got it, and the check that it did is a
// test too: no service, no network and no container is left, and no daemon has panicked. A lab that cannot be handed
// back is thrown away.
//
// No test takes the passing of time for proof. Each waits, up to a bound that is generous because the machine may be
// busy, for the condition it is about; what was measured is logged, for people to compare with DESIGN's bars.
//
// The test binary starts itself again and runs the tests in that child. So the labs are removed whatever ends the tests: a
// panic, the test timeout, Ctrl-C.
package e2e
