// Command prime is the web service of miniswarm's story: it finds prime numbers by trial division, so that every request
// costs real processor time and one small container is soon overloaded.
//
//	GET /primes?start=A&end=B   a JSON list of the primes in [A, B]
//	GET /docs                   a page to try it by hand: the primes, and which replica found them
//	GET /metrics                what Prometheus scrapes: requests, how long they took, how many are in flight
//	GET /healthz                200 while the service wants traffic, 503 once it is stopping
//
// Every answer names the process that gave it in the header X-Replica (the host name, which in a container is the
// container's short id), so that the spreading of requests over replicas can be seen. What is wrong with a request is
// said as JSON: {"error": "..."} with a 4xx status.
//
// # Settings
//
//	PORT    the TCP port, 8000 if unset
//	DRAIN   how long to go on accepting after SIGTERM, as a Go duration, 1s if unset
//	GRACE   how long requests in flight then get to finish, 8s if unset; DRAIN + GRACE should stay below the time
//	        after which the engine kills the container (10 s unless stop_grace_period says otherwise)
//
// # Stopping
//
// On SIGTERM or SIGINT the service turns /healthz to 503 and answers on, asking clients to close their connections,
// for DRAIN: load balancers notice and send new connections elsewhere meanwhile. Then it closes its listener, lets
// the requests in flight finish within GRACE, and exits 0. A second signal ends it at once.
//
// # The image
//
// The image holds nothing but this binary. `prime -healthcheck` asks the service beside it for /healthz and exits 0 or
// 1; it stands in for the shell and curl that a health check would otherwise need.
package main
