package identity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestEstranged(t *testing.T) {
	refused := fmt.Errorf("ask a manager: %w", &net.OpError{Op: "remote error", Err: alertUnknownCA})
	other := fmt.Errorf("%w: its certificate is not signed by this cluster's root CA", ErrOtherCluster)
	down := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	for _, c := range []struct {
		name string
		errs []error
		want bool
	}{
		{"nobody asked", nil, false},
		{"refused", []error{refused}, true},
		{"another root", []error{other}, true},
		{"one refuses, the others are away", []error{down, refused, io.EOF, context.DeadlineExceeded, syscall.ECONNRESET}, true},
		{"all are away", []error{down, io.EOF, context.DeadlineExceeded}, false},
		{"one knows this node", []error{refused, errors.New("manager 10.0.0.1:2377 knows no leader")}, false},
		{"expired", []error{&net.OpError{Op: "remote error", Err: alertCertificateExpired}}, false},
	} {
		if got := Estranged(c.errs...); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// A machine that does not answer is one thing to a person, whether the silence is noticed by a timeout or by a question for its address.
func TestSilenceHasOneCure(t *testing.T) {
	c := NewClient(ClientConfig{})
	for _, err := range []error{
		&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)},
		&net.OpError{Op: "dial", Net: "tcp", Err: context.DeadlineExceeded},
	} {
		got := c.explainDial(err)
		if !errors.Is(got, ErrUnreachable) || !strings.Contains(got.Error(), "no answer") || !strings.HasSuffix(got.Error(), "; check the address, and that no firewall drops the port") {
			t.Errorf("%v is explained as %v", err, got)
		}
	}
}
