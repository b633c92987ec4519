package identity

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// renewal is a renewer in a bubble of virtual time whose requests the CA answers directly.
type renewal struct {
	t       *testing.T
	ca      *CA
	store   *Store
	start   time.Time
	r       *Renewer
	at      []time.Duration // when requests came, since the start
	changes []Identity
	fail    func(attempt int) error
	role    Role
	log     bytes.Buffer
	stop    context.CancelCauseFunc
	ended   chan error
}

func startRenewal(t *testing.T, validity time.Duration, random float64, fail func(int) error) *renewal {
	t.Helper()
	v := &renewal{t: t, start: time.Now(), fail: fail, role: Worker, ended: make(chan error, 1)}
	v.ca = must(NewCA(CAConfig{}))
	v.store = must(NewStore(StoreConfig{Dir: t.TempDir()}))
	must(Found(v.ca, v.store, testIdentity, validity))
	v.r = must(NewRenewer(RenewerConfig{
		Store: v.store,
		Request: func(_ context.Context, csr []byte) (IssueResponse, error) {
			v.at = append(v.at, time.Since(v.start))
			if v.fail != nil {
				if err := v.fail(len(v.at)); err != nil {
					return IssueResponse{}, err
				}
			}
			id := testIdentity
			id.Role = v.role
			cert, err := v.ca.Issue(csr, id, validity)
			return IssueResponse{string(cert), id.NodeID, id.Role}, err
		},
		Renewed: func(_, fresh Identity) { v.changes = append(v.changes, fresh) },
		Random:  func() float64 { return random },
		Logger:  slog.New(slog.NewTextHandler(&v.log, nil)),
	}))
	ctx, cancel := context.WithCancelCause(t.Context())
	v.stop = cancel
	go func() { v.ended <- v.r.Run(ctx) }()
	return v
}

// finish stops the renewer and waits for it.
func (v *renewal) finish() {
	v.t.Helper()
	cause := errors.New("stopped by the test")
	v.stop(cause)
	if err := <-v.ended; !errors.Is(err, cause) {
		v.t.Errorf("Run = %v, want the cause", err)
	}
}

func TestRenewerRenewsBetweenHalfAndFourFifths(t *testing.T) {
	// Validity counts from NotBefore, an hour before the start.
	const validity = 99 * time.Hour
	for _, tc := range []struct {
		random float64
		want   []time.Duration
	}{
		{0, []time.Duration{49 * time.Hour, 98 * time.Hour, 147 * time.Hour}},
		{0.5, []time.Duration{64 * time.Hour, 128 * time.Hour}},
		{1, []time.Duration{79 * time.Hour, 158 * time.Hour}},
	} {
		synctest.Test(t, func(t *testing.T) {
			v := startRenewal(t, validity, tc.random, nil)
			first := v.store.Current()
			time.Sleep(160 * time.Hour)
			synctest.Wait()
			if !slices.Equal(v.at, tc.want) {
				t.Errorf("with random %v it renewed at %v, want %v", tc.random, v.at, tc.want)
			}
			if v.store.Current() == first || len(v.changes) != len(tc.want) {
				t.Errorf("%d changes told", len(v.changes))
			}
			v.finish()
			if loaded, err := v.store.Load(); err != nil || !same(loaded, v.store.Current()) {
				t.Errorf("on disk: %v", err)
			}
		})
	}
}

func TestRenewerBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := errors.New("no manager answers")
		v := startRenewal(t, 99*time.Hour, 0, func(n int) error {
			if n <= 13 {
				return down
			}
			return nil
		})
		time.Sleep(56 * time.Hour)
		synctest.Wait()
		var gaps []time.Duration
		for i := 1; i < len(v.at); i++ {
			gaps = append(gaps, v.at[i]-v.at[i-1])
		}
		s := time.Second
		want := []time.Duration{5 * s, 10 * s, 20 * s, 40 * s, 80 * s, 160 * s, 320 * s, 640 * s, 1280 * s, 2560 * s, time.Hour, time.Hour, time.Hour}
		if !slices.Equal(gaps, want) {
			t.Errorf("pauses %v, want %v", gaps, want)
		}
		if len(v.changes) != 1 {
			t.Errorf("%d renewals", len(v.changes))
		}
		v.finish()
		if !strings.Contains(v.log.String(), "level=WARN") || strings.Contains(v.log.String(), "level=ERROR") {
			t.Errorf("log: %s", v.log.String())
		}
	})
}

func TestRenewerOutlivesTheCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		down.Store(true)
		v := startRenewal(t, 10*time.Hour, 0, func(int) error {
			if down.Load() {
				return errors.New("no manager answers")
			}
			return nil
		})
		time.Sleep(30 * time.Hour)
		synctest.Wait()
		if err := v.store.Current().CheckTime(time.Now()); !errors.Is(err, ErrExpired) {
			t.Errorf("CheckTime = %v", err)
		}
		down.Store(false)
		time.Sleep(time.Hour)
		synctest.Wait()
		if err := v.store.Current().CheckTime(time.Now()); err != nil {
			t.Errorf("not renewed once it could be: %v", err)
		}
		v.finish()
		if !strings.Contains(v.log.String(), "level=ERROR") || !strings.Contains(v.log.String(), ErrExpired.Error()) {
			t.Errorf("log does not tell that the certificate expired: %s", v.log.String())
		}
	})
}

func TestRenewNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := startRenewal(t, 99*time.Hour, 0, nil)
		time.Sleep(time.Hour)
		v.role = Manager
		v.r.RenewNow()
		v.r.RenewNow() // counts as one
		synctest.Wait()
		want := testIdentity
		want.Role = Manager
		if !slices.Equal(v.at, []time.Duration{time.Hour}) || v.store.Current().Identity != want || !slices.Equal(v.changes, []Identity{want}) {
			t.Errorf("after promotion: requests at %v, %+v", v.at, v.store.Current().Identity)
		}
		v.finish()
	})
}

// TestARoleThatWaitsForItsCertificate: when an external CA is back after hours, nobody waits an hour more.
func TestARoleThatWaitsForItsCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		back := time.Now().Add(10 * time.Hour)
		v := startRenewal(t, 99*time.Hour, 0, func(int) error {
			if time.Now().Before(back) {
				return &StatusError{503, "the external CA is away"}
			}
			return nil
		})
		time.Sleep(time.Hour)
		v.r.RenewNow()
		time.Sleep(9*time.Hour + maxUrgentBackoff)
		synctest.Wait()
		if len(v.changes) != 1 {
			t.Errorf("%d renewals %s after it is back", len(v.changes), maxUrgentBackoff)
		}
		v.finish()
	})
}

// TestAStrayRemovalIsNoEnd: a manager that is behind may know a node no more, or not yet.
func TestAStrayRemovalIsNoEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := startRenewal(t, 99*time.Hour, 0, func(n int) error {
			if n < 6 {
				return ErrRemoved
			}
			return nil
		})
		time.Sleep(50 * time.Hour)
		synctest.Wait()
		if len(v.changes) != 1 || len(v.at) != 6 {
			t.Errorf("%d renewals in %d attempts", len(v.changes), len(v.at))
		}
		v.finish()
	})
}

// TestANodeThatIsExpiredAndRemovedHearsSo: no leader gives it a session that would tell it.
func TestANodeThatIsExpiredAndRemovedHearsSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var phase atomic.Int32
		v := startRenewal(t, 10*time.Hour, 0, func(n int) error {
			if p := phase.Load(); p == 0 || p == 1 && n%3 == 0 {
				return errors.New("no manager answers")
			}
			return ErrRemoved
		})
		time.Sleep(12 * time.Hour)
		phase.Store(1)
		time.Sleep(time.Hour)
		select {
		case err := <-v.ended:
			t.Fatalf("it believed two in a row: %v", err)
		default:
		}
		phase.Store(2)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if err := <-v.ended; !errors.Is(err, ErrRemoved) {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestRenewNowInterruptsABackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := startRenewal(t, 99*time.Hour, 0, func(n int) error {
			if n <= 10 {
				return errors.New("no manager answers")
			}
			return nil
		})
		time.Sleep(49*time.Hour + 2555*time.Second) // ten attempts, the next after 2560 s
		synctest.Wait()
		before := len(v.at)
		v.r.RenewNow()
		synctest.Wait()
		if len(v.at) != before+1 || len(v.changes) != 1 {
			t.Errorf("%d attempts, %d renewals, want %d and 1", len(v.at), len(v.changes), before+1)
		}
		v.finish()
	})
}

// TestRenewerNoticesASetClock: a machine that slept, or whose clock was set, renews within minutes of noticing.
func TestRenewerNoticesASetClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &clock{}
		ca := must(NewCA(CAConfig{Now: c.now}))
		store := must(NewStore(StoreConfig{Dir: t.TempDir(), Now: c.now}))
		must(Found(ca, store, testIdentity, 99*time.Hour))
		renewed := 0
		r := must(NewRenewer(RenewerConfig{
			Store: store, Now: c.now, Random: func() float64 { return 0 },
			Request: func(_ context.Context, csr []byte) (IssueResponse, error) {
				cert, err := ca.Issue(csr, testIdentity, 99*time.Hour)
				return IssueResponse{string(cert), testIdentity.NodeID, Worker}, err
			},
			Renewed: func(Identity, Identity) { renewed++ },
		}))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		time.Sleep(time.Hour)
		c.shift(60 * time.Hour)
		time.Sleep(clockCheck)
		synctest.Wait()
		if renewed != 1 {
			t.Errorf("%d renewals %s after the clock jumped", renewed, clockCheck)
		}
		cancel()
		<-done
	})
}

// TestRenewerWithAClockFarAhead: to a clock that is 40 minutes ahead of the managers' a new certificate of an hour is old at once.
func TestRenewerWithAClockFarAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &clock{}
		c.shift(40 * time.Minute)
		ca := must(NewCA(CAConfig{}))
		store := must(NewStore(StoreConfig{Dir: t.TempDir(), Now: c.now}))
		must(Found(ca, store, testIdentity, time.Hour))
		renewed := 0
		r := must(NewRenewer(RenewerConfig{
			Store: store, Now: c.now, Random: func() float64 { return 0.5 },
			Request: func(_ context.Context, csr []byte) (IssueResponse, error) {
				if renewed++; renewed > 100 {
					return IssueResponse{}, errors.New("too often")
				}
				cert, err := ca.Issue(csr, testIdentity, time.Hour)
				return IssueResponse{string(cert), testIdentity.NodeID, Worker}, err
			},
		}))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		if renewed < 2 || renewed > 13 {
			t.Errorf("%d renewals within a minute", renewed)
		}
		cancel()
		<-done
	})
}

func TestRenewerKeepsWhatItHasWhenTheAnswerIsWrong(t *testing.T) {
	ca, stranger := must(NewCA(CAConfig{})), must(NewCA(CAConfig{}))
	past := must(LoadCA(ca.Root().PEM(), must(ca.KeyPEM()), CAConfig{Now: (&clock{offset: -year}).now}))
	_, otherCSR, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		answer func(csr []byte) ([]byte, error)
		words  string
	}{
		"other node":    {func(csr []byte) ([]byte, error) { return ca.Issue(csr, Identity{"x", testClusterID, Worker}, 0) }, "instead of node"},
		"other cluster": {func(csr []byte) ([]byte, error) { return ca.Issue(csr, Identity{testIdentity.NodeID, "x", Worker}, 0) }, "instead of node"},
		"other root":    {func(csr []byte) ([]byte, error) { return stranger.Issue(csr, testIdentity, 0) }, "did not sign it"},
		"other key":     {func([]byte) ([]byte, error) { return ca.Issue(otherCSR, testIdentity, 0) }, "does not belong"},
		"expired":       {func(csr []byte) ([]byte, error) { return past.Issue(csr, testIdentity, 0) }, "expired"},
		"nothing":       {func([]byte) ([]byte, error) { return nil, nil }, "no PEM block"},
	} {
		t.Run(name, func(t *testing.T) {
			store := must(NewStore(StoreConfig{Dir: t.TempDir()}))
			before := must(Found(ca, store, testIdentity, 0))
			r := must(NewRenewer(RenewerConfig{Store: store, Request: func(_ context.Context, csr []byte) (IssueResponse, error) {
				cert, err := c.answer(csr)
				return IssueResponse{Certificate: string(cert)}, err
			}}))
			if err := r.renew(t.Context()); err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("renew = %v, want %q", err, c.words)
			}
			if loaded, err := store.Load(); err != nil || !same(loaded, before) {
				t.Errorf("credentials changed, %v", err)
			}
		})
	}
}

func TestRenewerNeedsCredentials(t *testing.T) {
	r := must(NewRenewer(RenewerConfig{
		Store:   must(NewStore(StoreConfig{Dir: t.TempDir()})),
		Request: func(context.Context, []byte) (IssueResponse, error) { panic("not reached") },
	}))
	if err := r.Run(t.Context()); !errors.Is(err, ErrNotJoined) {
		t.Errorf("Run = %v", err)
	}
}
