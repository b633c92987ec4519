// Package trouble keeps logs readable while something goes on going wrong.
//
// A daemon that tries the same thing again and again would write the same line again and again, and drown what else has
// happened. A line is worth writing when trouble begins, when it becomes another, when it is over, and now and then in
// between so that whoever looks at the end of a log sees that it lasts: after a minute, after ten, and then every hour.
package trouble

import (
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
	told  int       // guarded by mu; lines written since it began
	what  string    // guarded by mu; as it was told last
}

// Again notes that there is trouble at now, and says whether to write a line, and for how long it has lasted. Other trouble
// than before is told at once; callers whose words differ without meaning anything else pass an empty what.
func (l *Log) Again(now time.Time, what string) (tell bool, lasting time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.began.IsZero() {
		l.began, l.told = now, 0
	}
	lasting = now.Sub(l.began)
	if l.told > 0 && what == l.what && now.Before(l.next) {
		return false, lasting
	}
	if l.told > 0 && what != l.what {
		l.what = what
		return true, lasting // the time for a reminder stays what it is
	}
	l.what = what
	l.told++
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
	l.began, l.what = time.Time{}, ""
	return true, lasted
}
