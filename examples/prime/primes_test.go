package main

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestPrimes(t *testing.T) {
	for _, tc := range []struct {
		asked span
		want  []int
	}{
		{span{0, 1}, []int{}},
		{span{0, 2}, []int{2}},
		{span{1, 30}, []int{2, 3, 5, 7, 11, 13, 17, 19, 23, 29}},
		{span{25, 25}, []int{}}, // a square: the last divisor tried is the root itself
		{span{29, 29}, []int{29}},
		{span{9990, 10010}, []int{10007, 10009}},
	} {
		got, err := primes(t.Context(), tc.asked)
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("primes(%v) = %v, %v; want %v", tc.asked, got, err, tc.want)
		}
		if got == nil {
			t.Errorf("primes(%v) is nil and would be the JSON value null", tc.asked)
		}
	}
}

// The answer agrees with a sieve, the method this service refuses to use.
func TestPrimesAgainstSieve(t *testing.T) {
	const end = 50_000
	composite := make([]bool, end+1)
	var want []int
	for n := 2; n <= end; n++ {
		if composite[n] {
			continue
		}
		want = append(want, n)
		for m := n * n; m <= end; m += n {
			composite[m] = true
		}
	}
	got, err := primes(t.Context(), span{0, end})
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("primes up to %d: %d found, err %v; the sieve has %d", end, len(got), err, len(want))
	}
}

func TestPrimesStopsWhenNobodyWaits(t *testing.T) {
	gone := errors.New("client gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if _, err := primes(ctx, span{1, maxEnd}); !errors.Is(err, gone) {
		t.Errorf("err = %v; want %v", err, gone)
	}
}

func TestParseSpan(t *testing.T) {
	for _, tc := range []struct {
		query, wantErr string
		want           span
	}{
		{query: "start=1&end=100", want: span{1, 100}},
		{query: "start=7&end=7", want: span{7, 7}},
		{query: "start=0&end=10000000", want: span{0, maxEnd}},
		{query: "", wantErr: "start is missing"},
		{query: "start=1", wantErr: "end is missing"},
		{query: "start=&end=3", wantErr: `start must be a whole number, not ""`},
		{query: "start=1.5&end=3", wantErr: `start must be a whole number, not "1.5"`},
		{query: "start=1&end=99999999999999999999", wantErr: "end must be a whole number"},
		{query: "start=-1&end=3", wantErr: "start must lie between 0 and 10000000, not -1"},
		{query: "start=1&end=10000001", wantErr: "end must lie between"},
		{query: "start=5&end=4", wantErr: "start (5) is greater than end (4)"},
	} {
		q, err := url.ParseQuery(tc.query)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseSpan(q)
		if tc.wantErr == "" && (err != nil || got != tc.want) {
			t.Errorf("%q: got %v, %v; want %v", tc.query, got, err, tc.want)
		}
		if tc.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tc.wantErr)) {
			t.Errorf("%q: err = %v; want one with %q", tc.query, err, tc.wantErr)
		}
	}
}

// BenchmarkRequest is the work behind the story's average request; it says what CPU limit makes a replica worth about 200
// requests a second.
//
//	go test -run - -bench Request ./examples/prime
func BenchmarkRequest(b *testing.B) {
	spans := make([]span, 0, 64)
	for i := range cap(spans) { // the middle of each 64th of the users' range, with the middle of its starts
		end := 1000 + (49_000*(2*i+1))/(2*cap(spans))
		spans = append(spans, span{end / 4, end})
	}
	i := 0
	for b.Loop() {
		if _, err := primes(b.Context(), spans[i%len(spans)]); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
