package overlay

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestAListThatChangesIsReadAgain(t *testing.T) {
	other := errors.New("not permitted")
	for _, tc := range []struct {
		name    string
		changes int // how often
		then    error
		want    error
		tries   int
	}{
		{"quiet", 0, nil, nil, 1},
		{"busy", 3, nil, nil, 4},
		{"always", 1000, nil, netlink.ErrDumpInterrupted, 20},
		{"another error", 1, other, other, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tries := 0
			all, err := whole(func() ([]int, error) {
				tries++
				if tries <= tc.changes {
					return []int{1}, fmt.Errorf("list: %w", netlink.ErrDumpInterrupted)
				}
				return []int{1, 2}, tc.then
			})
			if !errors.Is(err, tc.want) || tries != tc.tries || err == nil && len(all) != 2 {
				t.Errorf("%v, %v after %d tries; want %v after %d", all, err, tries, tc.want, tc.tries)
			}
		})
	}
}
