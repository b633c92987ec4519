package trouble

import (
	"slices"
	"testing"
	"time"
)

// What is tried every three seconds for a day is told at the beginning, after a minute, ten minutes, and every hour.
func TestLongTroubleIsToldRarely(t *testing.T) {
	var l Log
	begin := time.Unix(1_000_000, 0)
	var told []time.Duration
	for d := time.Duration(0); d < 4*time.Hour; d += 3 * time.Second {
		if tell, lasting := l.Again(begin.Add(d), ""); tell {
			if lasting != d {
				t.Errorf("after %s it is said to last for %s", d, lasting)
			}
			told = append(told, d)
		}
	}
	want := []time.Duration{0, time.Minute, 10 * time.Minute, time.Hour, 2 * time.Hour, 3 * time.Hour}
	if !slices.Equal(told, want) {
		t.Errorf("told after %v, want %v", told, want)
	}
	if was, lasted := l.Over(begin.Add(5 * time.Hour)); !was || lasted != 5*time.Hour {
		t.Errorf("over: %v %s", was, lasted)
	}
	if was, _ := l.Over(begin.Add(6 * time.Hour)); was {
		t.Error("over twice")
	}
	if tell, lasting := l.Again(begin.Add(7*time.Hour), ""); !tell || lasting != 0 {
		t.Errorf("new trouble: told %v, lasting %s", tell, lasting)
	}
}

func TestOtherTroubleIsToldAtOnce(t *testing.T) {
	var l Log
	now := time.Unix(1_000_000, 0)
	for i, c := range []struct {
		what string
		tell bool
	}{{"a", true}, {"a", false}, {"b", true}, {"b", false}, {"a", false}, {"c", true}, {"b", false}} {
		if tell, _ := l.Again(now.Add(time.Duration(i)*time.Second), c.what); tell != c.tell {
			t.Errorf("%d, %s: told %v", i, c.what, tell)
		}
	}
	if tell, _ := l.Again(now.Add(time.Minute), "a"); !tell {
		t.Error("not told again after a minute")
	}
}

// What goes to and fro, or is never the same twice, leaves the log readable.
func TestChangingTroubleIsBounded(t *testing.T) {
	for name, what := range map[string]func(i int) string{
		"two kinds": func(i int) string { return []string{"a", "b"}[i%2] },
		"no two":    func(i int) string { return time.Duration(i).String() },
	} {
		var l Log
		told := 0
		begin := time.Unix(1_000_000, 0)
		for i := range 3600 {
			if tell, _ := l.Again(begin.Add(time.Duration(i)*time.Second), what(i)); tell {
				told++
			}
		}
		if most := 3 * maxKinds; told > most || told < 6 {
			t.Errorf("%s: told %d times in an hour", name, told)
		}
	}
}
