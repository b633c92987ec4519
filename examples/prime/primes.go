package main

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
)

// maxEnd bounds the work one request can ask for: [1, maxEnd] takes a few seconds of one core.
const maxEnd = 10_000_000

// span is a range of numbers, both ends included, as it was asked for: 0 <= start <= end <= maxEnd.
type span struct{ start, end int }

// parseSpan reads start and end from a query. Its errors are meant for the person who wrote the query.
func parseSpan(q url.Values) (span, error) {
	start, err := parseBound(q, "start")
	if err != nil {
		return span{}, err
	}
	end, err := parseBound(q, "end")
	if err != nil {
		return span{}, err
	}
	if start > end {
		return span{}, fmt.Errorf("start (%d) is greater than end (%d)", start, end)
	}
	return span{start, end}, nil
}

func parseBound(q url.Values, name string) (int, error) {
	if !q.Has(name) {
		return 0, fmt.Errorf("%s is missing: ask for /primes?start=1&end=100", name)
	}
	n, err := strconv.Atoi(q.Get(name))
	if err != nil {
		return 0, fmt.Errorf("%s must be a whole number, not %q", name, q.Get(name))
	}
	if n < 0 || n > maxEnd {
		return 0, fmt.Errorf("%s must lie between 0 and %d, not %d", name, maxEnd, n)
	}
	return n, nil
}

// primes lists the primes of s in order. It stops early, with ctx's cause, when nobody waits for the answer any more.
func primes(ctx context.Context, s span) ([]int, error) {
	found := []int{} // not nil: an empty answer is the JSON list [], not null
	for n := s.start; n <= s.end; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if isPrime(n) {
			found = append(found, n)
		}
	}
	return found, nil
}

// isPrime tries every divisor up to the root of n. It could skip the even ones, or sieve; it is meant to be the slow and
// obvious way, because a service that burns processor time is what the story is about.
func isPrime(n int) bool {
	if n < 2 {
		return false
	}
	for d := 2; d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return true
}
