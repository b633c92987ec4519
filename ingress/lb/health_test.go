package lb

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// A health's life as a script: + and - are checks, x a failed connection; the states after each are expected.
func TestHealth(t *testing.T) {
	for _, tc := range []struct {
		rise, fall   int
		script, want string // ? unknown, u up, d down
	}{
		{2, 2, "+", "u"},                       // the first check decides alone
		{2, 2, "-", "d"},                       //
		{2, 2, "+-+-+--", "uuuuuud"},           // only failures in a row count
		{2, 2, "-+-+-++", "ddddddu"},           // only successes in a row count
		{3, 1, "+-++ +", "uddd u"},             //
		{1, 3, "+---+", "uuudu"},               //
		{2, 2, "x++", "ddu"},                   // one failed connection is enough
		{2, 2, "++x+x++", "uudddd" + "u"},      // and starts the count of successes anew
		{2, 2, "+x-+-++", "udd" + "ddd" + "u"}, //
	} {
		h := health{rise: tc.rise, fall: tc.fall}
		var got strings.Builder
		for i, step := range tc.script {
			now := time.Unix(int64(i), 0)
			before := h.state
			var changed bool
			switch step {
			case '+':
				changed = h.checked(nil, now)
			case '-':
				changed = h.checked(errors.New("silent"), now)
			case 'x':
				changed = h.connectFailed(errors.New("refused"), now)
			default:
				got.WriteRune(' ')
				continue
			}
			if changed != (h.state != before) || changed && h.since != now {
				t.Errorf("%q at %d: changed %v from %v to %v since %v", tc.script, i, changed, before, h.state, h.since)
			}
			fmt.Fprintf(&got, "%c", h.state.String()[0])
		}
		if got.String() != tc.want {
			t.Errorf("rise %d, fall %d, %q: got %q; want %q", tc.rise, tc.fall, tc.script, got.String(), tc.want)
		}
	}
}
