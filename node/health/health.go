// Package health answers /healthz and /readyz: a list of checks, each by its name, and 503 if one of them fails.
package health

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// limit is how long a check may take. What is stuck fails for that.
const limit = 2 * time.Second

// Check is one thing that has to be so.
type Check struct {
	Name string
	// Ask returns nil if it is so. It should return when ctx ends; one that does not counts as failed, and is not asked again
	// until it has returned.
	Ask func(ctx context.Context) error
}

// Page is a page of checks. It may be served concurrently.
type Page struct {
	checks func() []Check
	asked  sync.Map // name of a check -> *atomic.Int64: since when it is being asked, in Unix nanoseconds; 0 if it is not
}

// NewPage gives a page of the checks that there are at the moment.
func NewPage(checks func() []Check) *Page { return &Page{checks: checks} }

// Result is what became of a check.
type Result struct {
	Name string
	Err  error
}

// Ask asks all checks at once, and returns within a little more than two seconds.
func (p *Page) Ask(ctx context.Context) []Result {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	checks := p.checks()
	results := make([]Result, len(checks))
	var all sync.WaitGroup
	for i, c := range checks {
		all.Go(func() { results[i] = Result{c.Name, p.ask(ctx, c)} })
	}
	all.Wait()
	return results
}

// ask asks one. The goroutine outlives a check that hangs; after those of the first two seconds there are no more.
func (p *Page) ask(ctx context.Context, c Check) error {
	v, _ := p.asked.LoadOrStore(c.Name, new(atomic.Int64))
	asked := v.(*atomic.Int64)
	if since := asked.Load(); since != 0 && time.Since(time.Unix(0, since)) > limit {
		return fmt.Errorf("no answer since %s", time.Unix(0, since).UTC().Format(time.RFC3339))
	}
	begun := time.Now().UnixNano()
	first := asked.CompareAndSwap(0, begun)
	answer := make(chan error, 1)
	go func() {
		answer <- c.Ask(ctx)
		if first {
			asked.Store(0)
		}
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-answer: // at the last moment
		return err
	case <-time.After(limit / 20): // for those who return when ctx ends, with a better reason
	}
	select {
	case err := <-answer:
		return err
	default:
		return fmt.Errorf("no answer within %s", limit)
	}
}

// ServeHTTP implements http.Handler: the word ok or failed, and a line for each check.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	results := p.Ask(r.Context())
	status, word := http.StatusOK, "ok"
	var lines strings.Builder
	for _, res := range results {
		said := "ok"
		if res.Err != nil {
			status, word = http.StatusServiceUnavailable, "failed"
			said = strings.ReplaceAll(res.Err.Error(), "\n", "; ")
		}
		fmt.Fprintf(&lines, "%s: %s\n", res.Name, said)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	fmt.Fprintf(w, "%s\n%s", word, lines.String())
}
