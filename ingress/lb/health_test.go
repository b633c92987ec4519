package lb

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// A health's life as a script: + and - are checks, x a failed connection, c one that was made, all a
// second apart or, after a comma, 60 ms; the states after each are expected.
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
		{2, 2, "x++", "ddu"},                   // one failed connection is enough where nothing good is known
		{2, 2, "++x+x++", "uuuuuuu"},           // else it may be one replica's behind it
		{2, 2, "+xx+-++", "uud" + "ddd" + "u"}, // several in a row are not
		{2, 2, "+xcxcx", "uuuuuu"},             // a connection in between is
		{2, 2, "--xc++", "ddddd" + "u"},        // only checks bring it up
		{2, 2, "+,xxxxxx", "u uuuudd"},         // and not before a silence
	} {
		h := health{rise: tc.rise, fall: tc.fall}
		var got strings.Builder
		now, pace := time.Unix(0, 0), time.Second
		for i, step := range tc.script {
			now = now.Add(pace)
			before := h.state
			var changed bool
			switch step {
			case '+':
				changed = h.checked(nil, now)
			case '-':
				changed = h.checked(errors.New("silent"), now)
			case 'c':
				h.connected(now)
			case ',':
				now, pace = now.Add(-pace), 60*time.Millisecond
				got.WriteRune(' ')
				continue
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
