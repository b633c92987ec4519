package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"
)

// When to renew, as Docker Swarm does (swarm-semantics.md, 8.2).
const (
	renewFrom = 0.5 // share of the validity after which renewal may begin
	renewTo   = 0.8 // and before which it does

	minRenewBackoff = 5 * time.Second
	// minRenewPause is the least time between two renewals that nobody has asked for.
	minRenewPause   = 5 * time.Second
	maxRenewBackoff = time.Hour
	// maxUrgentBackoff is for a renewal that was asked for, after which the node is to have another role or trust another root, and
	// for a node whose certificate has expired: nothing else works until it has another.
	maxUrgentBackoff = 30 * time.Second
	// removals is how often in a row a node whose certificate has expired must be told that it was removed before it believes it.
	removals = 3

	// clockCheck is how long the renewer sleeps at most before it looks at the clock again: timers stand still while a
	// machine is suspended and do not notice when its clock is set.
	clockCheck = 10 * time.Minute
)

// RenewerConfig configures a Renewer.
type RenewerConfig struct {
	Store *Store
	// Request has the key of a signing request certified for this node: by [Client.RenewCertificate] at any manager or,
	// on the leader, directly. ctx limits it to a minute.
	Request func(ctx context.Context, csrPEM []byte) (IssueResponse, error)
	// Renewed is called after new credentials were saved, from within Run; nil is allowed. Roles that differ mean that the
	// node was promoted or demoted.
	Renewed func(before, after Identity)
	Now     func() time.Time // nil: time.Now
	// Random returns a number in [0, 1) that spreads the nodes' renewals over time; nil: math/rand/v2.
	Random func() float64
	Logger *slog.Logger // nil: silence
}

// Renewer keeps the certificate in a store fresh.
type Renewer struct {
	cfg RenewerConfig
	now chan struct{} // of capacity 1: a renewal that RenewNow asked for
}

// NewRenewer returns a renewer that does nothing until Run.
func NewRenewer(cfg RenewerConfig) (*Renewer, error) {
	if cfg.Store == nil || cfg.Request == nil {
		return nil, errors.New("certificate renewer: store and request function must be given")
	}
	if cfg.Renewed == nil {
		cfg.Renewed = func(Identity, Identity) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Random == nil {
		cfg.Random = rand.Float64
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Renewer{cfg: cfg, now: make(chan struct{}, 1)}, nil
}

// RenewNow makes Run renew without waiting for the time to come, as a node does that learns of its promotion or
// demotion. It returns at once and may be called at any time; calls before the renewal begins count as one.
func (r *Renewer) RenewNow() {
	select {
	case r.now <- struct{}{}:
	default: // one is asked for already
	}
}

// Run renews the store's certificate whenever a random point between 50 % and 80 % of its validity is reached, until ctx is
// done, whose cause it returns; after a renewal it waits for a moment at least. Failures are repeated after 5 s, doubling up to 1 h, or to 30 s
// if the renewal was asked for or the certificate has expired.
//
// The answer that this node is not a member any more ([ErrRemoved]) is a failure like others: whoever gave it may be behind, and a
// node that was removed hears so from its session with the leader. One whose certificate has expired gets no session, so
// that Run ends when it has been told so several times in a row.
//
// Run goes on when the certificate has expired, because that is still good for its own renewal; failures are then logged
// at level Error.
func (r *Renewer) Run(ctx context.Context) error {
	var soonest time.Time
	for {
		c, err := r.cfg.Store.required()
		if err != nil {
			return fmt.Errorf("renew certificate: %w", err)
		}
		at := r.renewAt(c)
		if at.Before(soonest) {
			at = soonest // by this machine's clock, which may be far ahead, even a new certificate is old
		}
		asked, err := r.waitUntil(ctx, at)
		if err != nil {
			return err
		}
		if err := r.renewUntilDone(ctx, asked); err != nil {
			return err
		}
		soonest = r.cfg.Now().Add(minRenewPause)
	}
}

// renewAt draws the moment of renewal. Validity counts from the certificate's NotBefore, as in Docker Swarm.
func (r *Renewer) renewAt(c *Credentials) time.Time {
	notBefore, notAfter := c.Validity()
	share := renewFrom + (renewTo-renewFrom)*r.cfg.Random()
	return notBefore.Add(time.Duration(share * float64(notAfter.Sub(notBefore))))
}

// waitUntil returns when the clock reaches at or RenewNow is called, which it tells.
func (r *Renewer) waitUntil(ctx context.Context, at time.Time) (asked bool, err error) {
	for {
		left := at.Sub(r.cfg.Now())
		if left <= 0 {
			return false, ctx.Err()
		}
		timer := time.NewTimer(min(left, clockCheck))
		select {
		case <-timer.C:
		case <-r.now:
			timer.Stop()
			return true, nil
		case <-ctx.Done():
			timer.Stop()
			return false, context.Cause(ctx)
		}
	}
}

// renewUntilDone tries until it succeeds; it returns an error only when ctx is done or the node is not a member any more.
func (r *Renewer) renewUntilDone(ctx context.Context, urgent bool) error {
	removed := 0
	for backoff := minRenewBackoff; ; backoff = min(2*backoff, r.maxBackoff(urgent)) {
		select {
		case <-r.now: // this attempt is what was asked for
			urgent = true
		default:
		}
		err := r.renew(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if removed++; !errors.Is(err, ErrRemoved) {
			removed = 0
		}
		if removed >= removals && r.expired() {
			return fmt.Errorf("renew certificate: %w", err)
		}
		r.report(err, backoff)
		asked, err := r.waitUntil(ctx, r.cfg.Now().Add(backoff))
		if err != nil {
			return err
		}
		urgent = urgent || asked
	}
}

func (r *Renewer) maxBackoff(urgent bool) time.Duration {
	if urgent || r.expired() {
		return maxUrgentBackoff
	}
	return maxRenewBackoff
}

func (r *Renewer) expired() bool {
	c := r.cfg.Store.Current()
	return c != nil && errors.Is(c.CheckTime(r.cfg.Now()), ErrExpired)
}

func (r *Renewer) report(err error, retry time.Duration) {
	if c := r.cfg.Store.Current(); c != nil {
		if expired := c.CheckTime(r.cfg.Now()); expired != nil {
			r.cfg.Logger.Error("the certificate is not valid, and could not be renewed yet", "err", errors.Join(expired, err), "retry", retry)
			return
		}
	}
	r.cfg.Logger.Warn("certificate not renewed", "err", err, "retry", retry)
}

// renew makes one attempt. The old credentials stay in use unless it succeeds.
func (r *Renewer) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := r.cfg.Store.required(); err != nil {
		return err
	}
	keyPEM, csrPEM, err := NewRequest()
	if err != nil {
		return err
	}
	resp, err := r.cfg.Request(ctx, csrPEM)
	if err != nil {
		return err
	}
	// The root is the one that is trusted now, which a rotation may have changed since the request.
	old, fresh, err := r.cfg.Store.replace(func(old *Credentials) (*Credentials, error) {
		fresh, err := ParseCredentials(old.Root.pem, []byte(resp.Certificate), keyPEM)
		if err != nil {
			return nil, fmt.Errorf("renewed certificate: %w", err)
		}
		if fresh.Identity.NodeID != old.Identity.NodeID || fresh.Identity.ClusterID != old.Identity.ClusterID {
			return nil, fmt.Errorf("renewed certificate is for node %s of cluster %s instead of node %s of cluster %s",
				fresh.Identity.NodeID, fresh.Identity.ClusterID, old.Identity.NodeID, old.Identity.ClusterID)
		}
		if err := fresh.CheckTime(r.cfg.Now()); err != nil {
			return nil, fmt.Errorf("renewed certificate: %w", err)
		}
		return fresh, nil
	})
	if err != nil {
		return err
	}
	_, until := fresh.Validity()
	r.cfg.Logger.Info("certificate renewed", "node", fresh.Identity.NodeID, "role", fresh.Identity.Role, "until", until)
	r.cfg.Renewed(old.Identity, fresh.Identity)
	return nil
}
