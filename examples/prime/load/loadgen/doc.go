// Package loadgen is the crowd of the story: users who ask a prime service for primes, wait a while, and ask again. It has
// the same user model as the Locust file beside it, in one process without anything to install, and it counts what a
// test of a cluster wants to know: who answered, what failed and how, and how long answers took, phase by phase.
//
// # The model
//
// Users are spawned at a steady rate. Each asks at once, then waits between ThinkMin and ThinkMax, evenly distributed,
// then asks again. What it asks is `/primes?start=S&end=E` with E even in 1000..50000 and S even in 1..E/2. Each user has
// connections of its own, as each visitor of a web site has. The load is a closed loop: a user who waits for an answer asks
// nothing, so 2000 users never have more than 2000 requests under way, and a slow service slows the crowd.
//
// # What is counted
//
// A request is answered when it got status 200 and a body with as many primes as the range holds; anything else is a
// failure with a [Class]. It belongs to the phase in which it ended. Latencies are those of answered requests, from
// before connecting to the last byte, in a histogram of fixed size with three significant digits. Requests cut off by
// the end of the run are neither answers nor failures; they are Unfinished.
//
// # Concurrency and randomness
//
// [New] starts nothing. [Generator.Run] blocks until its context ends and waits for every goroutine it started.
// [Generator.Phase] may be called at any time from any goroutine. With one seed, every user asks the same questions with
// the same waits in every run; the order among users is the world's.
package loadgen
