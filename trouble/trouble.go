// Package trouble keeps logs readable while something goes on going wrong.
//
// A daemon that tries the same thing again and again would write the same line again and again, and drown what else has
// happened. A line is worth writing when trouble begins, when it becomes another, when it is over, and now and then in
// between so that whoever looks at the end of a log sees that it lasts: after a minute, after ten, and then every hour. Trouble that
// goes to and fro between several kinds is one that lasts.
package trouble

import (
	"slices"
	"sync"
	"time"
)

// pauses are how long after the beginning of trouble it is told again; after the last of them every hour.
var pauses = []time.Duration{time.Minute, 10 * time.Minute, time.Hour}

// Log remembers one kind of trouble. The zero value is none so far. It may be used concurrently.
type Log struct {
	mu    sync.Mutex
	began time.Time // guarded by mu; zero while all is well
	next  time.Time // guarded by mu; when to tell again
	kinds []string  // guarded by mu; what was told since the last reminder; empty before the first line
}

// maxKinds bounds the lines between two reminders, for words that are never the same twice.
const maxKinds = 8

// Again notes that there is trouble at now, and says whether to write a line, and for how long it has lasted. Trouble of a kind that was not
// told since the last reminder is told at once; callers whose words differ without meaning anything else pass an empty what.
func (l *Log) Again(now time.Time, what string) (tell bool, lasting time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.began.IsZero() {
		l.began, l.kinds = now, nil
	}
	lasting = now.Sub(l.began)
	if len(l.kinds) > 0 && now.Before(l.next) {
		if slices.Contains(l.kinds, what) || len(l.kinds) == maxKinds {
			return false, lasting
		}
		l.kinds = append(l.kinds, what)
		return true, lasting // the time for a reminder stays what it is
	}
	l.kinds = []string{what}
	last := pauses[len(pauses)-1]
	l.next = now.Add(last)
	for _, p := range pauses {
		if at := l.began.Add(p); at.After(now) {
			l.next = at
			break
		}
	}
	return true, lasting
}

// Over notes that all is well at now. It says whether there was trouble, and for how long.
func (l *Log) Over(now time.Time) (was bool, lasted time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.began.IsZero() {
		return false, 0
	}
	lasted = now.Sub(l.began)
	l.began, l.kinds = time.Time{}, nil
	return true, lasted
}
