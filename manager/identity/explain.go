package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"
)

// Where in a conversation it broke off; explain says it in a person's words.
type (
	dialError      struct{ error } // no TCP connection
	handshakeError struct{ error } // no TLS
	talkError      struct{ error } // connection lost afterwards
)

func (e *dialError) Unwrap() error      { return e.error }
func (e *handshakeError) Unwrap() error { return e.error }
func (e *talkError) Unwrap() error      { return e.error }

// TLS alerts by which a server refuses a client's certificate (RFC 8446, 6.2).
const (
	alertBadCertificate     tls.AlertError = 42
	alertCertificateUnknown tls.AlertError = 46
	alertCertificateExpired tls.AlertError = 45
	alertUnknownCA          tls.AlertError = 48
	alertInternalError      tls.AlertError = 80
)

// explain turns what the network said into what a person can act on. It may ask the peer for its clock.
func (c *Client) explain(ctx context.Context, err error, addr string, conf *tls.Config) error {
	if clock, ok := errors.AsType[*ClockError](err); ok {
		clock.Addr, clock.Remote = addr, c.clockOf(ctx, addr)
		return clock
	}
	if e, ok := errors.AsType[*dialError](err); ok {
		return c.explainDial(e.error)
	}
	if e, ok := errors.AsType[*handshakeError](err); ok {
		return c.explainHandshake(e.error)
	}
	if e, ok := errors.AsType[*talkError](err); ok {
		return c.explainTalk(ctx, e.error, addr, conf)
	}
	return err
}

func (c *Client) explainDial(err error) error {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return fmt.Errorf("%w: host name %q cannot be resolved: %w", ErrUnreachable, dns.Name, err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: connection refused: nothing listens there; check the address and port and that the manager is running",
			ErrUnreachable)
	case errors.Is(err, syscall.EHOSTUNREACH): // the same as silence, where the machine's neighbours are asked for the address first
		return fmt.Errorf("%w: no answer (no route to host); check the address, and that no firewall drops the port", ErrUnreachable)
	case isTimeout(err):
		return fmt.Errorf("%w: no answer within %s; check the address, and that no firewall drops the port",
			ErrUnreachable, c.cfg.DialTimeout)
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

func (c *Client) explainHandshake(err error) error {
	var plain tls.RecordHeaderError
	alert, isAlert := alertOf(err)
	switch {
	case errors.As(err, &plain):
		return fmt.Errorf("%w: it does not speak TLS; check the port (a manager's is 2377 unless it was changed)", ErrNotManager)
	case isTimeout(err):
		return fmt.Errorf("%w: it took the connection but no TLS answer came within %s; "+
			"it is overloaded, or something else than a manager listens there", ErrUnreachable, c.cfg.DialTimeout)
	case isAlert && alert == alertInternalError:
		return fmt.Errorf("%w: it has no certificate of its own yet: %w", ErrUnreachable, err)
	case isAlert:
		return fmt.Errorf("%w: it refuses TLS as we speak it: %w", ErrNotManager, err)
	case isClosed(err):
		return fmt.Errorf("%w: it closed the connection during the TLS handshake; "+
			"it is just starting, or something else than a manager listens there", ErrUnreachable)
	}
	return err // the verdict of our own verification
}

// explainTalk is for connections that broke after our side of the handshake. With TLS 1.3 that is where a server's refusal of
// our certificate shows: as an alert or, if the reset overtakes the alert, as a lost connection.
func (c *Client) explainTalk(ctx context.Context, err error, addr string, conf *tls.Config) error {
	alert, isAlert := alertOf(err)
	if own := clientCertificate(conf); own != nil && (isAlert && alert == alertCertificateExpired || !isAlert && isClosed(err)) {
		theirs := c.clockOf(ctx, addr)
		if !theirs.IsZero() && (theirs.Before(own.Leaf.NotBefore) || theirs.After(own.Leaf.NotAfter)) || isAlert {
			return &ClockError{Addr: addr, Local: c.cfg.Now(), Remote: theirs, NotBefore: own.Leaf.NotBefore, NotAfter: own.Leaf.NotAfter}
		}
	}
	switch {
	case isAlert && (alert == alertBadCertificate || alert == alertUnknownCA || alert == alertCertificateUnknown):
		return fmt.Errorf("%w: it does not accept this node's certificate: %w", ErrOtherCluster, err)
	case isTimeout(err):
		return fmt.Errorf("%w: no answer to the request within %s", ErrUnreachable, c.cfg.Timeout)
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// clientCertificate returns the certificate that conf shows to servers, nil for an anonymous connection.
func clientCertificate(conf *tls.Config) *tls.Certificate {
	if conf.GetClientCertificate == nil {
		return nil
	}
	cert, err := conf.GetClientCertificate(nil)
	if err != nil {
		return nil
	}
	return cert
}

// clockOf asks the peer what time it is, on a connection that needs no valid certificate on either side. The answer only serves
// to word an error, so nothing depends on its truth. It is zero if there was none.
func (c *Client) clockOf(ctx context.Context, addr string) time.Time {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
	defer cancel()
	got, err := c.roundTrip(ctx, addr, c.anonymousTLS(), http.MethodGet, RootPath, nil)
	if err != nil {
		return time.Time{}
	}
	return got.date
}

// alertOf returns the TLS alert that the peer sent. crypto/tls reports it as a net.OpError around a type of its own, which
// can be told only by its words; those it shares with tls.AlertError.
func alertOf(err error) (tls.AlertError, bool) {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return 0, false
	}
	for n := range 256 {
		if a := tls.AlertError(n); a.Error() == op.Err.Error() {
			return a, true
		}
	}
	return 0, false
}

// Estranged says of what came of asking managers, with an error for each, whether this node is most likely none of their cluster (any
// more): one at least refuses the node's certificate because another root CA issued it, or shows such a certificate itself, and
// whoever else can be reached does so too. Anybody at their addresses may say that, so that nothing may be given up for it; a person is to
// be told.
//
// That is all that a node can see which was removed while it was away and the root CA rotated: the managers cannot tell it, since they
// have no way to know it.
func Estranged(errs ...error) bool {
	found := false
	for _, err := range errs {
		var op *net.OpError
		alert, isAlert := alertOf(err)
		switch {
		case errors.Is(err, ErrOtherCluster), isAlert && alert == alertUnknownCA:
			found = true
		case errors.As(err, &op) && op.Op == "dial", isTimeout(err), isClosed(err): // a lost connection may have had the alert before it
		default:
			return false
		}
	}
	return found
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
