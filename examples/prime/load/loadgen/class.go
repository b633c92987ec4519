package loadgen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// Class names a kind of failure. Statuses other than 200 are "http 404" and so on.
type Class string

const (
	Refused     Class = "connection refused" // nobody listens there
	Reset       Class = "connection reset"   // the peer's kernel had no such connection, or the peer gave it up
	Closed      Class = "connection closed"  // the peer ended the connection before its answer was whole
	Timeout     Class = "timeout"            // no whole answer in time; a machine without power looks like this
	Unreachable Class = "unreachable"        // no way to that host or network
	NoSuchHost  Class = "no such host"       // its name is unknown
	WrongAnswer Class = "wrong answer"       // status 200, but not the primes asked for
	Other       Class = "other"              // see the example in Phase.Examples
)

// wrongAnswerError is a 200 with something else in it than the primes of the range.
type wrongAnswerError struct{ got, want string }

func (e *wrongAnswerError) Error() string {
	return fmt.Sprintf("answer has %s, want %s", e.got, e.want)
}

// statusError is an answer with a status other than 200.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("http status %d", int(e)) }

// classify finds the kind of a request's error.
func classify(err error) Class {
	if _, ok := errors.AsType[*wrongAnswerError](err); ok {
		return WrongAnswer
	}
	if status, ok := errors.AsType[statusError](err); ok {
		return Class(fmt.Sprintf("http %d", int(status)))
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return NoSuchHost
	}
	for _, known := range []struct {
		cause error
		class Class
	}{
		{context.DeadlineExceeded, Timeout},
		{os.ErrDeadlineExceeded, Timeout},
		{syscall.ETIMEDOUT, Timeout},
		{syscall.ECONNREFUSED, Refused},
		{syscall.ECONNRESET, Reset},
		{syscall.EPIPE, Reset},
		{syscall.EHOSTUNREACH, Unreachable},
		{syscall.ENETUNREACH, Unreachable},
		{io.EOF, Closed},
		{io.ErrUnexpectedEOF, Closed},
	} {
		if errors.Is(err, known.cause) {
			return known.class
		}
	}
	if maybe, ok := errors.AsType[net.Error](err); ok && maybe.Timeout() {
		return Timeout
	}
	return Other
}
