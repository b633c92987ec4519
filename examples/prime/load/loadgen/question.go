package loadgen

import (
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
)

// The ranges that users ask for, as in the story.
const (
	minEnd = 1000
	maxEnd = 50_000
)

// question is one request: the primes in [start, end].
type question struct{ start, end int }

func newQuestion(r *rand.Rand) question {
	end := minEnd + r.IntN(maxEnd-minEnd+1)
	return question{start: 1 + r.IntN(end/2), end: end}
}

func (q question) path() string {
	return "/primes?start=" + strconv.Itoa(q.start) + "&end=" + strconv.Itoa(q.end)
}

// primesUpTo holds at n how many primes there are in [0, n]: enough to know an incomplete or foreign answer from a whole one.
var primesUpTo = sync.OnceValue(func() []int {
	composite := make([]bool, maxEnd+1)
	upTo := make([]int, maxEnd+1)
	for n := 2; n <= maxEnd; n++ {
		upTo[n] = upTo[n-1]
		if composite[n] {
			continue
		}
		upTo[n]++
		for m := n * n; m <= maxEnd; m += n {
			composite[m] = true
		}
	}
	return upTo
})

// check reads an answer to its end and returns an error if it is not a list of as many numbers as there are primes in
// the range.
func (q question) check(body io.Reader) error {
	var seen listCounter
	if _, err := io.Copy(&seen, body); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	want := primesUpTo()[q.end] - primesUpTo()[q.start-1]
	if !seen.list() {
		return &wrongAnswerError{got: "no JSON list", want: fmt.Sprintf("%d primes", want)}
	}
	if got := seen.len(); got != want {
		return &wrongAnswerError{got: fmt.Sprintf("%d numbers", got), want: fmt.Sprintf("%d primes", want)}
	}
	return nil
}

// listCounter counts the elements of a JSON list of numbers as it passes, in constant space.
type listCounter struct {
	first, last byte // of what is not white space
	commas      int
	digits      bool
}

func (c *listCounter) Write(p []byte) (int, error) {
	for _, b := range p {
		switch {
		case b == ' ' || b == '\n' || b == '\r' || b == '\t':
			continue
		case b == ',':
			c.commas++
		case b >= '0' && b <= '9':
			c.digits = true
		}
		if c.first == 0 {
			c.first = b
		}
		c.last = b
	}
	return len(p), nil
}

func (c *listCounter) list() bool { return c.first == '[' && c.last == ']' }

func (c *listCounter) len() int {
	if !c.digits {
		return 0
	}
	return c.commas + 1
}
