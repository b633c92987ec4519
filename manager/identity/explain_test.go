package identity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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
