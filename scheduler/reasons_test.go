package scheduler

import (
	"slices"
	"testing"
)

func TestReasonsAreReadBackFromExplanations(t *testing.T) {
	for f := filterNone + 1; f < filterCount; f++ {
		for n := range 3 {
			other := FilterResource
			if f == other {
				other = FilterPlatform
			}
			text := noSuitableNode + " (" + other.words(n) + "; " + f.words(n) + ")"
			want := []Filter{f, other}
			slices.Sort(want)
			if got := Reasons(text); !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", text, got, want)
			}
		}
	}
	for _, text := range []string{"", noSuitableNode, "something else on 3 nodes"} {
		if got := Reasons(text); len(got) > 0 {
			t.Errorf("%q: %v", text, got)
		}
	}
}
