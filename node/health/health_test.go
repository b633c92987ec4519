package health

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func page(t *testing.T, p *Page) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/", nil))
	return w.Code, w.Body.String()
}

func TestPageNamesWhatFails(t *testing.T) {
	good := Check{"good", func(context.Context) error { return nil }}
	bad := Check{"bad", func(context.Context) error { return errors.New("out of\nsorts") }}
	for _, c := range []struct {
		checks []Check
		status int
		body   string
	}{
		{nil, 200, "ok\n"},
		{[]Check{good}, 200, "ok\ngood: ok\n"},
		{[]Check{good, bad}, 503, "failed\ngood: ok\nbad: out of; sorts\n"},
	} {
		status, body := page(t, NewPage(func() []Check { return c.checks }))
		if status != c.status || body != c.body {
			t.Errorf("%d %q, want %d %q", status, body, c.status, c.body)
		}
	}
}

// A check that hangs fails within the limit, is not asked by everybody who looks, and is well again once it has returned.
func TestWhatHangsFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var asked atomic.Int64
		p := NewPage(func() []Check {
			return []Check{{"stuck", func(context.Context) error { asked.Add(1); <-release; return nil }}}
		})
		began := time.Now()
		status, body := page(t, p)
		if status != 503 || !strings.Contains(body, "stuck: no answer within 2s") || time.Since(began) > 3*time.Second {
			t.Errorf("%d %q after %s", status, body, time.Since(began))
		}
		for range 5 {
			if status, body := page(t, p); status != 503 || !strings.Contains(body, "no answer since") {
				t.Errorf("%d %q", status, body)
			}
		}
		if n := asked.Load(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		close(release)
		synctest.Wait()
		if status, body := page(t, p); status != 200 {
			t.Errorf("%d %q", status, body)
		}
	})
}
