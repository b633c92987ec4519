package ingress

import (
	"errors"
	"fmt"
	"testing"
)

func TestWaiting(t *testing.T) {
	busy, other := error(&HasContainersError{errors.New("network back has active endpoints")}), errors.New("no such device")
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false}, {other, false}, {busy, true}, {fmt.Errorf("remove: %w", busy), true}, {errors.Join(busy, fmt.Errorf("remove: %w", errors.Join(busy))), true},
		{errors.Join(busy, other), false}, {fmt.Errorf("apply: %w", errors.Join(errors.Join(busy), other)), false},
	} {
		if got := Waiting(c.err); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}
