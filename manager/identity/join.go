package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// DefaultPort is the control port of managers.
const DefaultPort = 2377

// Attempts at joining unless configured otherwise, as Docker Swarm downloads its root certificate (swarm-semantics.md, 8.1).
const (
	joinAttempts = 5
	joinPause    = 2 * time.Second
	// joinPatience is how long addresses at which nobody answers are tried: a person waits. A manager that answers, and
	// has no leader just now, gets all its attempts.
	joinPatience = 5 * time.Second
)

// JoinConfig configures Join.
type JoinConfig struct {
	// Addrs are managers, as host or host:port. One that works suffices.
	Addrs        []string
	Token        string
	Availability swarm.NodeAvailability // "" means active
	Store        *Store
	Client       *Client       // nil: NewClient(ClientConfig{})
	Attempts     int           // at each manager that does not answer; 0: 5
	Pause        time.Duration // between attempts; 0: 2 s
	Logger       *slog.Logger  // hears of attempts that will be repeated; nil is silence
}

// Join makes this machine a node of the cluster that the token belongs to, and returns who it is. Unless it succeeds
// nothing is on disk afterwards that was not before.
//
// Managers that do not answer are tried again; a refusal is final. The error is that of the last attempt at
// each address.
func Join(ctx context.Context, cfg JoinConfig) (Identity, error) {
	id, err := join(ctx, cfg)
	if err != nil {
		return Identity{}, fmt.Errorf("join swarm: %w", err)
	}
	return id, nil
}

func join(ctx context.Context, cfg JoinConfig) (Identity, error) {
	token, err := ParseToken(cfg.Token)
	if err != nil {
		return Identity{}, err
	}
	if cfg.Store == nil {
		return Identity{}, errors.New("no credential store given")
	}
	if len(cfg.Addrs) == 0 {
		return Identity{}, errors.New("at least one manager's address is required")
	}
	addrs := make([]string, len(cfg.Addrs))
	for i, a := range cfg.Addrs {
		if addrs[i], err = ParseAddr(a); err != nil {
			return Identity{}, err
		}
	}
	if cfg.Client == nil {
		cfg.Client = NewClient(ClientConfig{})
	}
	if cfg.Attempts <= 0 {
		cfg.Attempts = joinAttempts
	}
	if cfg.Pause <= 0 {
		cfg.Pause = joinPause
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	// One key for all attempts: if an answer is lost the next attempt gets the same node id.
	keyPEM, csrPEM, err := NewRequest()
	if err != nil {
		return Identity{}, err
	}
	creds, err := cfg.admitted(ctx, addrs, token, keyPEM, csrPEM)
	if err != nil {
		return Identity{}, err
	}
	if err := cfg.Store.Save(creds); err != nil {
		return Identity{}, err
	}
	return creds.Identity, nil
}

// admitted asks the managers in turn until one admits the newcomer or none is left that might.
func (cfg *JoinConfig) admitted(ctx context.Context, addrs []string, token Token, keyPEM, csrPEM []byte) (*Credentials, error) {
	failures := make(map[string]error, len(addrs))
	patient, done := context.WithTimeout(ctx, joinPatience)
	defer done()
	candidates := slices.Compact(slices.Sorted(slices.Values(addrs)))
	for attempt := 1; ; attempt++ {
		var again []string
		for _, addr := range candidates {
			creds, err := cfg.admittedBy(ctx, patient, addr, token, keyPEM, csrPEM)
			switch {
			case err == nil:
				return creds, nil
			case ctx.Err() != nil, errors.Is(err, ErrInvalidToken):
				return nil, err // no other manager would say otherwise
			}
			failures[addr] = err
			if isTransient(err) {
				again = append(again, addr)
			}
		}
		deadline, _ := patient.Deadline()
		silent := !slices.ContainsFunc(again, func(addr string) bool { return !errors.Is(failures[addr], ErrUnreachable) })
		if attempt >= cfg.Attempts || len(again) == 0 || silent && time.Until(deadline) < cfg.Pause {
			break
		}
		candidates = again
		cfg.Logger.Info("no manager admits this node yet, trying again", "addrs", again, "attempt", attempt, "err", failures[again[0]])
		select {
		case <-time.After(cfg.Pause):
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), failures[again[0]])
		}
	}
	var all []error
	for _, addr := range addrs { // as the user ordered them
		all = append(all, failures[addr])
		delete(failures, addr)
	}
	return nil, errors.Join(all...)
}

// admittedBy asks one manager. That it answers at all is waited for as long as patient; then ctx counts.
func (cfg *JoinConfig) admittedBy(ctx, patient context.Context, addr string, token Token, keyPEM, csrPEM []byte) (*Credentials, error) {
	if patient.Err() != nil {
		patient = ctx
	}
	root, err := cfg.Client.FetchRoot(patient, addr, token)
	if err != nil {
		return nil, err
	}
	resp, err := cfg.Client.RequestCertificate(ctx, addr, root, token, cfg.Availability, csrPEM)
	if err != nil {
		return nil, err
	}
	return ParseCredentials(root.pem, []byte(resp.Certificate), keyPEM)
}

// isTransient reports whether the same request may succeed later: nobody answered, or the cluster has no leader just now.
func isTransient(err error) bool {
	if status, ok := errors.AsType[*StatusError](err); ok {
		return status.Status >= 500
	}
	return errors.Is(err, ErrUnreachable)
}

// Found makes this machine the first manager of a new cluster: it certifies id by ca and saves the result in store.
func Found(ca *CA, store *Store, id Identity, validity time.Duration) (*Credentials, error) {
	creds, err := found(ca, id, validity)
	if err != nil {
		return nil, fmt.Errorf("found cluster %s: %w", id.ClusterID, err)
	}
	if err := store.Save(creds); err != nil {
		return nil, fmt.Errorf("found cluster %s: %w", id.ClusterID, err)
	}
	return creds, nil
}

func found(ca *CA, id Identity, validity time.Duration) (*Credentials, error) {
	keyPEM, csrPEM, err := NewRequest()
	if err != nil {
		return nil, err
	}
	certPEM, err := ca.Issue(csrPEM, id, validity)
	if err != nil {
		return nil, err
	}
	return ParseCredentials(ca.root.pem, certPEM, keyPEM)
}

// ParseAddr completes a manager's address as a user types it to host:port, the port being [DefaultPort] if none is given.
func ParseAddr(s string) (string, error) {
	text := strings.TrimSpace(s)
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"), strconv.Itoa(DefaultPort)
		if strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return "", fmt.Errorf("manager address %q: it must be HOST or HOST:PORT", s)
		}
	}
	if host == "" || strings.ContainsAny(host, "/ @") {
		return "", fmt.Errorf("manager address %q: it must be HOST or HOST:PORT", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("manager address %q: %q is not a port", s, port)
	}
	return net.JoinHostPort(host, port), nil
}
